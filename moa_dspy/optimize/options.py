"""The options of a search, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, get_args

import optuna

from moa_dspy.calls.budget import Budget
from moa_dspy.data.rows import check_outputs
from moa_dspy.diversity import DIVERSITY_METRICS, DiversityMetric
from moa_dspy.errors import StudyError
from moa_dspy.files import made, shown_value, unknown
from moa_dspy.optimize.objectives import OBJECTIVES, Objective
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.pool import Pool
from moa_dspy.winrate.length_control import GamedRows

TrialCallback: TypeAlias = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]
"""Takes the study and the trial that was just finished, as Optuna's callbacks do."""


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


def check_reference_field(name: str, agents: Sequence[str], rows: Mapping[str, Any]) -> None:
    """Check that every row has a response in a field.

    Args:
        name: The field.
        agents: Names that could stand there instead.
        rows: By split; empty where they are not known.

    Raises:
        StudyError: If no row has such a field; it names the choices.
        DataError: If a row has nothing in it.
    """
    fields = sorted({key for given in rows.values() for row in given for key in row.keys()})  # noqa: SIM118  # no dict
    if rows and name not in fields:
        raise StudyError(
            f"`judge.reference`: {name!r} is neither `{BEST_SINGLE}`, nor an agent of the space "
            f"({', '.join(agents)}), nor a field of the rows ({', '.join(fields)})."
        )
    for split, given in rows.items():
        check_outputs(given, [name], where=f"Split {split!r}")


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of ``ModelSearch``, which describes them.

    Raises:
        StudyError: If one does not fit, naming it, the value and the choices.
        PoolError: If the space names an agent that the pool lacks.
    """

    metric: Callable[..., Any] | None
    pool: Pool
    space: SearchSpace
    objectives: Sequence[Objective]
    diversity: DiversityMetric
    diversity_weight: float = 0.0
    n_trials: int = 40
    limits: Limits = field(default_factory=Limits)
    budget: Budget | None = None
    random_share: float = 0.2
    min_gain: float = 0.03
    num_threads: int = 8
    seed: int = 0
    sampler: Any = None
    callbacks: Sequence[TrialCallback] = ()
    prompts: PromptOptions | None = None
    judge: JudgeOptions | None = None

    def __post_init__(self) -> None:
        if self.n_trials < 1 or not 0 <= self.random_share < 1 or self.num_threads < 1:
            raise StudyError(
                "`n_trials` and `num_threads` must be at least 1 and `random_share` in [0, 1), but "
                f"got {self.n_trials}, {self.num_threads} and {self.random_share}."
            )
        if not 0 < self.min_gain < 1 or not 0 <= self.diversity_weight < math.inf:
            raise StudyError(
                "`min_gain` must be in (0, 1) and `diversity_weight` at least 0 and finite, but "
                f"got {self.min_gain} and {self.diversity_weight}."
            )
        check_seed(self.seed)
        if self.metric is None and self.judge is None:
            raise StudyError("A search needs a `metric` or a `judge`, but got neither.")
        if not self.objectives:
            raise StudyError(f"`objectives` must name at least one of {', '.join(OBJECTIVES)}.")
        for name in self.space.agents:
            self.pool[name]


LAST_SEED: Final = 2**32 - 1
"""NumPy's and Optuna's largest seed."""


def check_seed(seed: object) -> None:
    """Refuse what NumPy or Optuna would refuse after money was spent.

    Raises:
        StudyError: If it is no whole number in [0, 2**32 - 1].
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LAST_SEED:
        raise StudyError(
            f"`seed` must be a whole number in [0, {LAST_SEED}], but got {shown_value(seed)}."
        )


def named_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """Return the objectives of these names.

    Raises:
        StudyError: If one is unknown.
    """
    return tuple(_known(name, OBJECTIVES, "objectives")() for name in names)


def named_diversity(name: str | DiversityMetric) -> DiversityMetric:
    """Return the diversity metric of this name, or ``package.module:name``, or the metric given.

    Raises:
        StudyError: If it is unknown.
    """
    if not isinstance(name, str):
        return name
    if ":" in name:
        own: DiversityMetric = made("search.diversity", name, DIVERSITY_METRICS, has="__call__")
        return own
    metric: DiversityMetric = _known(name, DIVERSITY_METRICS, "diversity")()
    return metric


def _known(name: str, registry: Mapping[str, Any], option: str) -> Any:
    if name not in registry:
        raise unknown(option, name, registry)
    return registry[name]
