"""The options of a study's judge, in Python and as the table ``[judge]`` of a study file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict

from moa_dspy.agent import Agent
from moa_dspy.data.rows import records_of
from moa_dspy.errors import DataError, PoolError, StudyError
from moa_dspy.files import check_table, code_digest, imported, made, shown_value
from moa_dspy.judges import JUDGES
from moa_dspy.judges.base import JudgeProgram
from moa_dspy.judges.run import Jury, RecordedPairs
from moa_dspy.pool import Pool
from moa_dspy.winrate.length_control import GamedRows

Picks: TypeAlias = Literal["judge", "metric"]
BEST_SINGLE: Final = "best_single"
"""The reference that a round robin of the single agents chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """A judge and how a search uses it.

    Attributes:
        judge: Compares two answers to an example; see ``moa_dspy.judges``.
        picks: Whether the judge or the metric decides; needed where a search has both.
        reference: Whom every answer is compared with: an agent of the space, ``best_single``
            (the winner of a small round robin on val), or a field of the rows with responses.
        length_controlled: Whether the score is the win rate at equal lengths.
        second: Another judge, which is asked about a sample to see how far the two agree.
        difficulty: Field of the rows that the length-controlled win rate takes into account.
        gamed: Judgements that hold its length effect in place, as in AlpacaEval 2.
        name: What reports call the judge; None derives it.

    Raises:
        StudyError: If one does not fit, naming it, the value and the choices.
    """

    judge: Any
    picks: Picks | None = None
    reference: str = BEST_SINGLE
    length_controlled: bool = False
    second: Any = None
    difficulty: str | None = None
    gamed: GamedRows | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.picks is not None and self.picks not in get_args(Picks):
            raise StudyError(f"`judge.picks` must be 'judge' or 'metric', but got {self.picks!r}.")
        for key, one in (("judge", self.judge), ("judge.second", self.second)):
            if one is not None and not callable(getattr(one, "compare", None)):
                raise StudyError(
                    f"`{key}` must have `compare(example, candidate, reference)`, as the judges of "
                    f"moa_dspy.judges have, but is a {type(one).__name__}."
                )

    @classmethod
    def of(cls, judge: Any, *, has_metric: bool) -> JudgeOptions | None:
        """Return the options of what was given: none, a judge, or options.

        Raises:
            StudyError: If it is not said which picks, or what picks is not there.
        """
        if judge is None:
            return None
        options = judge if isinstance(judge, JudgeOptions) else cls(judge=judge)
        if options.picks is None and has_metric:
            raise StudyError(
                "There are a metric and a judge, and both are measured: say which one picks, by "
                '`picks = "judge"` or `picks = "metric"` (in Python: JudgeOptions(judge=..., '
                "picks=...))."
            )
        if options.picks == "metric" and not has_metric:
            raise StudyError('`picks = "metric"` needs a metric, but there is none.')
        return options if options.picks else replace(options, picks="judge")

    @property
    def label(self) -> str:
        """The judge for people: its class, and the agents that it asks."""
        return self.name or label_of(self.judge)


def members_of(judge: Any) -> tuple[Any, ...]:
    """Return a jury's judges, or the judge alone."""
    return tuple(getattr(judge, "judges", (judge,)))


def label_of(judge: Any) -> str:
    """Return the judge for people: its class, and the agents that it asks."""
    agents = [str(one.agent) for one in members_of(judge) if hasattr(one, "agent")]
    return " ".join([type(judge).__name__, ", ".join(agents)]).strip()


def self_preference_warnings(judge: Any, pool: Pool, agents: Sequence[str]) -> list[str]:
    """Return a warning for each model that judges and answers, itself or by its family."""
    found = []
    for one in members_of(judge):
        own, name = getattr(one, "pool", None), getattr(one, "agent", None)
        if own is None or name is None:
            continue
        model = own[name].model
        same = [a for a in agents if pool[a].model == model]
        kin = [a for a in agents if a not in same and _family(pool[a].model) == _family(model)]
        if same:
            found.append(
                f"Judge {name} ({model}) also answers, as {', '.join(same)}: a model tends to "
                "prefer its own answers. Take a judge from outside the pool."
            )
        elif kin:
            found.append(
                f"Judge {name} ({model}) is of the family of {', '.join(kin)}: models tend to "
                "prefer answers of their own family."
            )
    return found


def _family(model: str) -> str:
    words = re.match(r"[a-z]+", model.rpartition("/")[2].lower())
    return words[0] if words else model.lower()


RECORDED: Final = "recorded"
"""The kind of a judge that only looks preferences up."""
_COLUMNS: Final = ("question", "system", "reference", "preference")
_PAIR_ONLY: Final = ("orders", "allows_ties", "is_weighted")


class JudgeTable(BaseModel):
    """The table ``[judge]`` of a study file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = "pair"
    agent: Any = None
    reference: str = BEST_SINGLE
    picks: Picks | None = None
    orders: Literal["both", "seeded"] = "both"
    length_controlled: bool = False
    criteria: str | None = None
    allows_ties: bool = False
    is_weighted: bool = True
    second: Any = None
    path: Path | None = None

    def own_agents(self) -> dict[str, Agent]:
        """Return the agents that the table defines itself, by name.

        Raises:
            PoolError: If one does not fit.
        """
        tables = [one for key in ("agent", "second") for one in _listed(getattr(self, key))]
        return {one.name: one for one in map(_agent, tables) if isinstance(one, Agent)}

    def make(self, pool: Pool, *, seed: int = 0) -> JudgeOptions:
        """Return the options of the judge; nothing is asked.

        Args:
            pool: Whose agents may judge; the calls of others go where its calls go.
            seed: Of the order in which responses are shown, where that is drawn.

        Raises:
            StudyError: If a key does not fit, naming it, the value and the choices.
            PoolError: If an agent does not.
            DataError: If recorded preferences cannot be read.
        """
        self._check()
        judge = self._judge(_listed(self.agent), pool, seed)
        second = self._judge(_listed(self.second), pool, seed) if self.second is not None else None
        return JudgeOptions(
            judge=judge,
            picks=self.picks,
            reference=self.reference,
            length_controlled=self.length_controlled,
            second=second,
        )

    def digest(self) -> dict[str, Any]:
        """Return what decides the judge's verdicts, as plain data without settings of access."""
        plain = self.model_dump(mode="json", exclude={"agent", "second", "path"})
        for key in ("agent", "second"):
            found = map(_agent, _listed(getattr(self, key)))
            plain[key] = [
                one if isinstance(one, str) else [one.name, one.identity] for one in found
            ]
        if self.path is not None:
            plain["path"] = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if ":" in self.kind:
            plain["code"] = code_digest(imported("judge.kind", self.kind, _kinds()))
        return plain

    def _check(self) -> None:
        if self.kind not in _kinds() and ":" not in self.kind:
            imported("judge.kind", self.kind, _kinds())
        if self.criteria is not None and not self.criteria.strip():
            raise StudyError("`judge.criteria` must say what is better, but the text is empty.")
        if self.criteria is not None and self.kind not in ("pair", "grade"):
            raise StudyError(f"`judge.criteria` goes with kind pair or grade, not {self.kind!r}.")
        if (self.path is None) == (self.kind == RECORDED):
            raise StudyError(f"`judge.path` goes with `kind = {RECORDED!r}`, and is needed there.")
        if self.kind != "pair":
            for key in _PAIR_ONLY:
                if key in self.model_fields_set:
                    raise StudyError(f"`judge.{key}` goes with kind pair, not {self.kind!r}.")
        if self.kind in JUDGES and self.agent is None:
            raise StudyError(
                "`judge.agent` is missing: the name of an agent of the pool, a table of its own, "
                "or a list of these, a jury."
            )

    def _judge(self, agents: Sequence[Any], pool: Pool, seed: int) -> Any:
        if self.kind == RECORDED:
            return RecordedPairs(read_pairs(self.path or Path()))
        found = [self._asking(*_seat(one, pool), seed) for one in agents]
        if not found:
            return made("judge.kind", self.kind, _kinds(), has="compare")
        return found[0] if len(found) == 1 else Jury(found)

    def _asking(self, pool: Pool, agent: str, seed: int) -> Any:
        if ":" in self.kind:
            kind = imported("judge.kind", self.kind, _kinds())
            if not (isinstance(kind, type) and issubclass(kind, JudgeProgram)):
                raise StudyError(
                    f"`judge.agent` goes with a judge that asks an agent, but {self.kind!r} is no "
                    "subclass of moa_dspy.judges.JudgeProgram."
                )
            return kind(pool=pool, agent=agent)
        options: dict[str, Any] = {}
        if self.criteria is not None:
            options["criteria"] = self.criteria
        if self.kind == "pair":
            options |= {"order": self.orders, "seed": seed, "allows_ties": self.allows_ties}
            options["is_weighted"] = self.is_weighted
        if self.kind == "grade":
            options["n_turns"] = 1  # a mixture answers one turn
        return JUDGES[self.kind](pool=pool, agent=agent, **options)


def _kinds() -> list[str]:
    return [*JUDGES, RECORDED]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _agent(value: Any) -> Agent | str:
    """Return an agent of its own table, or the name of one of the pool."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise StudyError(
            "`judge.agent` must be the name of an agent, a table of one, or a list of these, but "
            f"got {shown_value(value)}."
        )
    return check_table(Agent, value, where="judge.agent", error=PoolError, may_hold_keys=True)


def _seat(value: Any, pool: Pool) -> tuple[Pool, str]:
    found = _agent(value)
    if isinstance(found, str):
        if found not in pool:
            raise StudyError(
                f"`judge.agent`: unknown agent {found!r}; the pool has {', '.join(pool)}. A judge "
                "outside of the pool is a table of its own, such as "
                '{ name = "judge", model = "openai/gpt-5" }.'
            )
        return pool, found
    if found.name in pool:
        raise StudyError(
            f"`judge.agent`: the pool has an agent {found.name!r} too; give the judge another name."
        )
    return Pool([found], calls=pool.calls), found.name


def read_pairs(path: Path) -> dict[tuple[str, str, str], float | None]:
    """Return the preferences of a table by (system, reference, question).

    Args:
        path: A file with the columns ``question`` (the id of a row), ``system``, ``reference``
            (architectures, agents, or the field of the reference) and ``preference``, in [0, 1]
            or null.

    Raises:
        DataError: It cannot be read, lacks a column, or has the same three twice.
    """
    found: dict[tuple[str, str, str], float | None] = {}
    for where, row in records_of(path):
        if missing := [name for name in _COLUMNS if name not in row]:
            raise DataError(
                f"{path}, {where}: no column {missing[0]!r}; "
                f"the row has {', '.join(map(str, row))}."
            )
        question, system, reference, value = (row[name] for name in _COLUMNS)
        key = (str(system), str(reference), str(question))
        if key in found:
            raise DataError(f"{path}, {where}: {system} and {reference} were there before.")
        if value is not None and not isinstance(value, int | float):
            raise DataError(f"{path}, {where}: a preference must be a number, but is {value!r}.")
        found[key] = None if value is None else float(value)
    return found
