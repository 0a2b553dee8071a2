"""The table ``[judge]`` of a study file, and the judges that it defines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from moa_dspy.agent import Agent
from moa_dspy.data.tables import records_of
from moa_dspy.errors import DataError, PoolError, StudyError
from moa_dspy.files import check_table, code_digest, imported, imported_instance, shown_value
from moa_dspy.judges import JUDGES
from moa_dspy.judges.program import JudgeProgram
from moa_dspy.judges.run import Jury, RecordedPairs
from moa_dspy.optimize.metric import BEST_SINGLE, JudgeOptions, Picks
from moa_dspy.pool import Pool

RECORDED: Final = "recorded"
"""The kind of a judge that only looks up recorded preferences."""
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
            PoolError: If the definition of an agent is invalid.
        """
        tables = [table for key in ("agent", "second") for table in _listed(getattr(self, key))]
        return {agent.name: agent for agent in map(_agent, tables) if isinstance(agent, Agent)}

    def make(
        self,
        pool: Pool,
        *,
        seed: int = 0,
        turns: str | None = None,
        beside: Path | None = None,
    ) -> JudgeOptions:
        """Return the options of the judge, without making a call.

        Args:
            pool: Its agents may judge; the calls of other judges go to its store too.
            seed: Seed of the order in which responses are shown, if it is random.
            turns: Field of the turns of a conversation, which are graded; None means one turn.
            beside: Folder of the study file, which may contain the module of a user's judge.

        Raises:
            StudyError: If a key is invalid; the message names it, the value and the choices.
            PoolError: If an agent is invalid.
            DataError: If recorded preferences cannot be read.
        """
        self._check(turns)
        by_agent = partial(self._judge_of_agent, seed=seed, turns=turns, beside=beside)
        judge = self._judge(_listed(self.agent), pool, by_agent, beside)
        second = None
        if self.second is not None:
            second = self._judge(_listed(self.second), pool, by_agent, beside)
        return JudgeOptions(
            judge=judge,
            picks=self.picks,
            reference=self.reference,
            length_controlled=self.length_controlled,
            second=second,
        )

    def digest(self, *, beside: Path | None = None) -> dict[str, Any]:
        """Return all settings that affect verdicts, as plain data without endpoints and keys.

        Args:
            beside: As for ``make``.
        """
        plain = self.model_dump(mode="json", exclude={"agent", "second", "path"})
        for key in ("agent", "second"):
            agents = map(_agent, _listed(getattr(self, key)))
            plain[key] = [
                agent if isinstance(agent, str) else [agent.name, agent.identity]
                for agent in agents
            ]
        if self.path is not None:
            plain["path"] = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if ":" in self.kind:
            kind = imported("judge.kind", self.kind, _kinds(), beside=beside)
            plain["code"] = code_digest(kind)
        return plain

    def _check(self, turns: str | None) -> None:
        if self.kind not in _kinds() and ":" not in self.kind:
            imported("judge.kind", self.kind, _kinds())
        if turns is not None and self.kind in ("pair", "skill"):
            raise StudyError(
                "`task.turns` needs `judge.kind` = 'grade', which grades every turn, or a judge "
                f"of your own; a judge of kind {self.kind!r} reads one response."
            )
        if self.criteria is not None and not self.criteria.strip():
            raise StudyError("`judge.criteria` must say what is better, but the text is empty.")
        if self.criteria is not None and self.kind not in ("pair", "grade"):
            raise StudyError(
                f"`judge.criteria` can only be set with kind pair or grade, not {self.kind!r}."
            )
        if (self.path is None) == (self.kind == RECORDED):
            raise StudyError(
                f"`judge.path` is needed with `kind = {RECORDED!r}`, and only allowed there."
            )
        if self.kind != "pair":
            for key in _PAIR_ONLY:
                if key in self.model_fields_set:
                    raise StudyError(
                        f"`judge.{key}` can only be set with kind pair, not {self.kind!r}."
                    )
        if self.kind in JUDGES and not _listed(self.agent):
            raise StudyError(
                "`judge.agent` is missing: give the name of an agent of the pool, a table, or a "
                "list of these, which is a jury."
            )

    def _judge(
        self,
        agents: Sequence[Any],
        pool: Pool,
        by_agent: Callable[[Pool, str], Any],
        beside: Path | None,
    ) -> Any:
        if self.kind == RECORDED:
            return RecordedPairs(read_pairs(self.path or Path()))
        judges = [by_agent(*_seat(agent, pool)) for agent in agents]
        if not judges:
            return imported_instance(
                "judge.kind", self.kind, _kinds(), has="compare", beside=beside
            )
        return judges[0] if len(judges) == 1 else Jury(judges)

    def _judge_of_agent(
        self, pool: Pool, agent: str, *, seed: int, turns: str | None, beside: Path | None
    ) -> Any:
        if ":" in self.kind:
            kind = imported("judge.kind", self.kind, _kinds(), beside=beside)
            if not (isinstance(kind, type) and issubclass(kind, JudgeProgram)):
                raise StudyError(
                    "`judge.agent` can only be set for a judge that calls an agent, but "
                    f"{self.kind!r} is not a subclass of moa_dspy.judges.JudgeProgram."
                )
            return kind(pool=pool, agent=agent)
        options: dict[str, Any] = {}
        if self.criteria is not None:
            options["criteria"] = self.criteria
        if self.kind == "pair":
            options |= {"order": self.orders, "seed": seed, "allows_ties": self.allows_ties}
            options["is_weighted"] = self.is_weighted
        if self.kind == "grade":
            # A mixture that does not run turn by turn answers the first turn only.
            options |= {"n_turns": 1} if turns is None else {"turns_field": turns}
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
    agent = _agent(value)
    if isinstance(agent, str):
        if agent not in pool:
            raise StudyError(
                f"`judge.agent`: unknown agent {agent!r}; the pool has {', '.join(pool)}. A "
                'judge outside the pool is given as a table, such as { name = "judge", model = '
                '"openai/gpt-5" }.'
            )
        return pool, agent
    if agent.name in pool:
        raise StudyError(
            f"`judge.agent`: the pool has an agent {agent.name!r} too; give the judge another name."
        )
    return Pool([agent], calls=pool.calls), agent.name


def read_pairs(path: Path) -> dict[tuple[str, str, str], float | None]:
    """Return the preferences of a table by (system, reference, question).

    Args:
        path: A file with the columns ``question`` (the id of a row), ``system``, ``reference``
            (architectures, agents, or the field of the reference) and ``preference``, in [0, 1]
            or null.

    Raises:
        DataError: If the file cannot be read, lacks a column, or has one comparison twice.
    """
    preferences: dict[tuple[str, str, str], float | None] = {}
    for where, row in records_of(path):
        if missing := [name for name in _COLUMNS if name not in row]:
            raise DataError(
                f"{path}, {where}: no column {missing[0]!r}; "
                f"the row has {', '.join(map(str, row))}."
            )
        question, system, reference, value = (row[name] for name in _COLUMNS)
        key = (str(system), str(reference), str(question))
        if key in preferences:
            raise DataError(
                f"{path}, {where}: {system} and {reference} are compared a second time on "
                f"question {question!r}."
            )
        if value is not None and not isinstance(value, int | float):
            raise DataError(f"{path}, {where}: a preference must be a number, but is {value!r}.")
        preferences[key] = None if value is None else float(value)
    return preferences
