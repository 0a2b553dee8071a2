"""The options of a search and the table of its rows, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import dspy
import optuna
from pydantic import BaseModel, ConfigDict, Field

from moa_dspy.calls.budget import Budget, Ledger
from moa_dspy.data import BENCHMARKS, Splits, read_answers, read_rows, split_rows, without_repeated
from moa_dspy.diversity import DIVERSITY_METRICS, DiversityMetric
from moa_dspy.errors import StudyError
from moa_dspy.files import (
    MODULE_AND_NAME,
    WHOLE,
    Kinds,
    check_kinds,
    imported_instance,
    shown_value,
    unknown,
)
from moa_dspy.optimize.early_facts import COSTS
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.metric import CheckedMetric, JudgeOptions, arity_of
from moa_dspy.optimize.objectives import OBJECTIVES, Objective, names_of
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.pool import Pool

TrialCallback: TypeAlias = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]
"""Receives the study and the trial that was just finished, as Optuna's callbacks do."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of ``ModelSearch``, documented there.

    Raises:
        StudyError: If an option is invalid; the message names it, the value and the choices.
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
    predictor: str | None = None
    storage: Any = None

    def __post_init__(self) -> None:
        check_kinds(self, _KINDS, error=StudyError)
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
        for callback in self.callbacks:
            # One that cannot be called would fail after the first paid trial.
            arity_of(callback, "`callbacks` must be functions of (study, trial)", most=2)
        if self.metric is not None:
            CheckedMetric.of(self.metric)
        elif self.judge is None:
            raise StudyError("A search needs a `metric` or a `judge`, but got neither.")
        if not self.objectives:
            raise StudyError(f"`objectives` must name at least one of {', '.join(OBJECTIVES)}.")
        names = names_of(self.objectives)
        if twice := {name for name in names if names.count(name) > 1}:
            raise StudyError(f"`objectives` names {min(twice)} more than once.")
        for name in self.space.agents:
            self.pool[name]
        if not isinstance(self.storage, str | optuna.storages.BaseStorage | None):
            raise StudyError(
                "`storage` must be a URL such as sqlite:///FILE or a storage of Optuna, but got "
                f"{shown_value(self.storage)}."
            )

    def make_ledger(self) -> Ledger:
        """Return a new ledger for the search, or the pool's ledger if only that has a budget."""
        pools = self.pool.calls.ledger
        is_pools = self.budget is None and pools.budget != Budget()
        return pools if is_pools else Ledger(self.budget)

    def make_judging(self, splits: Splits | None = None) -> Judging | None:
        """Return the judge of the search, or None; given the rows, its reference is checked too."""
        if self.judge is None:
            return None
        return Judging.of(self, {} if splits is None else {"val": splits.val, "test": splits.test})

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on options that make a study pointless; ``check`` and the report show them."""
        n, n_left = len(self.space.agents), self.n_trials - len(self.space.agents)
        is_enough = n_left >= (5 if n >= 10 else 1)  # a small pool has few mixtures
        if is_enough or not (self.space.max_depth or self.space.listed):
            return ()
        few = "No mixture is tried" if n_left < 1 else f"There is room for few mixtures ({n_left})"
        return (
            f"{few}: each of the {n} agents alone is a trial, and `n_trials` is "
            f"{self.n_trials}. Set it to {n + 20} or more.",
        )

    @property
    def compared_costs(self) -> tuple[str, ...]:
        """Costs that are an objective or limited: the first of them that is known is compared."""
        named = names_of(self.objectives)
        return tuple(n for n in COSTS if n in named or getattr(self.limits, n) is not None)


_KINDS: Final[Kinds] = {
    "space": (SearchSpace, "a SearchSpace"),
    "limits": (Limits, "Limits, such as Limits(calls=6)"),
    "budget": (Budget | None, "a number of usd, or a Budget such as Budget(calls=2_000)"),
    "n_trials": WHOLE,
    "num_threads": WHOLE,
    "random_share": (Real, "a number in [0, 1)"),
    "min_gain": (Real, "a number in (0, 1)"),
    "diversity_weight": (Real, "a number of at least 0"),
    "callbacks": (Sequence, "a list of functions of (study, trial)"),
    "prompts": (PromptOptions | None, "PromptOptions, such as PromptOptions()"),
    "predictor": (str | None, "the path of a predictor, such as 'answer'"),
}
"""Accepted types of each option in Python; study files are checked when they are read."""


LAST_SEED: Final = 2**32 - 1
"""Largest seed that NumPy and Optuna accept."""


def check_seed(seed: object) -> None:
    """Check a seed before money is spent, as NumPy and Optuna would reject it only later.

    Raises:
        StudyError: If it is not a whole number in [0, 2**32 - 1].
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= LAST_SEED:
        raise StudyError(
            f"`seed` must be a whole number in [0, {LAST_SEED}], but got {shown_value(seed)}."
        )


def named_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """Return the objectives of these names.

    Raises:
        StudyError: If a name is unknown, or ``names`` is not a list.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise StudyError(
            f"`objectives` must be a list of {', '.join(OBJECTIVES)}, but got {shown_value(names)}."
        )
    return tuple(_registered(name, OBJECTIVES, "objectives")() for name in names)


def named_diversity(name: str | DiversityMetric, *, beside: Path | None = None) -> DiversityMetric:
    """Return the diversity metric of this name or ``package.module:name``; a metric as it is.

    Args:
        name: One of ``DIVERSITY_METRICS``, ``package.module:name``, or a metric.
        beside: Folder that may contain the module.

    Raises:
        StudyError: If the name is unknown, or a metric cannot be used.
    """
    if isinstance(name, str) and ":" not in name:
        metric: DiversityMetric = _registered(name, DIVERSITY_METRICS, "diversity")()
        return metric
    own: Any = name
    if isinstance(name, str):
        own = imported_instance(
            "search.diversity", name, DIVERSITY_METRICS, has="__call__", beside=beside
        )
    _check_diversity(own)
    checked: DiversityMetric = own
    return checked


def _check_diversity(metric: Any) -> None:
    """Try a metric of the user's own on two made-up responses; a paid one of ours is not called."""
    wanted = (
        f"`diversity` must be one of {', '.join(sorted(DIVERSITY_METRICS))}, or a function of "
        "texts to a number in [0, 1]"
    )
    if isinstance(metric, type) or not callable(metric):
        raise StudyError(f"{wanted}, but got {shown_value(metric)}.")
    if type(metric).__module__.startswith("moa_dspy."):
        return
    try:
        value = metric(("one answer", "another answer"))
    except Exception as error:
        raise StudyError(f"{wanted}, but it raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Real) or not math.isfinite(value):
        raise StudyError(f"{wanted}, but it returned {shown_value(value)}.")


def _registered(name: str, registry: Mapping[str, Any], option: str) -> Any:
    if name not in registry:
        raise unknown(option, name, registry)
    return registry[name]


SAMPLERS: Final[dict[str, Any]] = {
    "gp": optuna.samplers.GPSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
}
"""Optuna's samplers by the names of ``search.sampler``."""


def named_sampler(name: str | None, *, seed: int, beside: Path | None = None) -> Any:
    """Return Optuna's sampler of this name; for None return None: the surrogate model proposes.

    Args:
        name: One of ``SAMPLERS``, or ``package.module:name``.
        seed: Seed of a sampler of ``SAMPLERS``.
        beside: Folder that may contain the module.

    Raises:
        StudyError: If the name is unknown, or the object is not a sampler.
    """
    if name is None:
        return None
    if name in SAMPLERS:
        return SAMPLERS[name](seed=seed)
    return imported_instance(
        "search.sampler", name, SAMPLERS, has="sample_independent", beside=beside
    )


class Table(BaseModel):
    """A table of a study file; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SizesTable(Table):
    """Rows per split."""

    train: int | None = Field(default=None, ge=0)
    val: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)


class DataTable(Table):
    """The source of the rows, and the split of each row: by a column, or drawn by sizes.

    Rows come from a file, given by its ``path`` and ``inputs``, or from a ``benchmark``: its
    ``split`` on the hub, or in the local copy at ``path``. With the ``reader`` "recorded" they
    are the questions of a table of answers.
    """

    path: Path | None = None
    reader: Literal["recorded"] | None = None
    inputs: tuple[str, ...] = Field(default=(), min_length=1)
    columns: dict[str, str] = {}
    outputs: tuple[str, ...] | None = None
    drops_incomplete: bool = False
    drops_repeated: bool = False
    benchmark: str | None = None
    split: str | None = None
    split_column: str | None = None
    sizes: SizesTable | None = None
    limit: SizesTable = SizesTable()

    def check(self, *, where: str) -> None:
        """Check that rows come from a file with inputs, or from a benchmark that defines its own.

        Raises:
            StudyError: If a key is missing, or contradicts another.
        """
        if self.reader is None and self.benchmark is None:
            for key, value in {"path": self.path, "inputs": self.inputs}.items():
                if not value:
                    raise StudyError(
                        f"{where}.data.{key}: this key is missing; without it, give "
                        "`data.benchmark`."
                    )
            if self.split is not None:
                raise StudyError(
                    "`data.split` can only be set with `data.benchmark`; without one, set "
                    "`data.split_column`."
                )
        elif self.benchmark is not None and (self.inputs or self.columns):
            raise StudyError(
                "`data` must have either `benchmark`, or `inputs` and `columns`, and not both."
            )
        elif self.benchmark is not None and (
            self.outputs is not None or self.drops_incomplete or self.drops_repeated
        ):
            raise StudyError(
                "`data.outputs`, `data.drops_incomplete` and `data.drops_repeated` can only be "
                "set for a file without `data.benchmark`."
            )

    def read(self) -> list[dspy.Example]:
        """Read the rows, all splits in one list."""
        if self.reader is not None:
            # The questions alone: a table without scores is scored where the metric is known.
            split = {} if self.split_column is None else {"split": "split"}
            columns = {**split, **(self.columns or {})}
            table = read_answers(self.path or Path(), columns=columns, matches=lambda *_: 0.0)
            return table.examples()
        if self.benchmark is not None:
            return BENCHMARKS[self.benchmark].read(self.path, split=self.split)
        rows = read_rows(
            self.path or Path(),
            inputs=list(self.inputs),
            columns=self.columns or None,
            outputs=self.outputs,
            drops_incomplete=self.drops_incomplete,
        )
        return without_repeated(rows, f"{self.path}") if self.drops_repeated else rows

    def make_splits(self, *, seed: int) -> Splits:
        """Read the rows and split them.

        Raises:
            StudyError: If the table does not define the splits.
        """
        if (self.split_column is None) == (self.sizes is None):
            raise StudyError(
                "`data` needs either `split_column` or `sizes`, which divide the rows into the "
                "three splits."
            )
        sizes = self.sizes.model_dump(exclude_none=True) if self.sizes else None
        splits = split_rows(self.read(), column=self.split_column, sizes=sizes, seed=seed)
        limit = self.limit
        return splits.limit(n_train=limit.train, n_val=limit.val, n_test=limit.test)


def with_recorded_task(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a study file's content with the settings that ``data.reader = "recorded"`` implies.

    The recorded agents are the pool, and they read the question only: the last step is a vote or
    a selection without a model, and no call is made.

    Raises:
        StudyError: If the file contradicts these settings, or names no table.
    """
    data = content.get("data")
    if not isinstance(data, Mapping) or data.get("reader") != "recorded":
        return content
    if "path" not in data:
        raise StudyError(
            '`data.path` is missing: with `data.reader` = "recorded" it is the table of answers.'
        )
    other = [key for key in ("pool", "agents", "judge", "prompts") if key in content]
    other += [f"data.{key}" for key in ("benchmark", "inputs", "outputs") if key in data]
    if other:
        raise StudyError(
            f'`{other[0]}` cannot be set with `data.reader` = "recorded": the table has the '
            "agents and their answers."
        )
    tables = {name: dict(content.get(name) or {}) for name in ("task", "space", "calls")}
    if isinstance(column := data.get("split_column"), str) and column != "split":
        # The rows of the study have the table's column under our name of it.
        named = {"split": column, **(data.get("columns") or {})}
        tables["data"] = {**data, "split_column": "split", "columns": named}
    combines = tables["space"].setdefault("combines", ["vote"])
    if not set(combines) <= {"vote", "select"}:
        raise StudyError(
            f"`space.combines` of recorded answers can only be vote and select, but is {combines}: "
            "no agent can read the others."
        )
    tables["space"].setdefault("max_depth", 1)
    tables["calls"]["replay_only"] = True
    task = {"signature": "question -> answer", "adapter": "plain", "metric": "answer_match"}
    return {**content, **tables, "task": {**task, **tables["task"]}}


PROGRAM_KEYS: Final = ("program", "predictor")
"""Of a study file's task: the program of the user's own, and the predictor searched in it."""


class TaskTable(Table):
    """The question, the prompt format for the agents, and the metric of an answer.

    With a ``program``, the signature is that of the whole program.
    """

    signature: str
    program: str | None = None
    predictor: str | None = None
    instructions: str | None = None
    adapter: str | None = None
    module: str = "predict"
    metric: str | None = None
    weights: dict[str, float] = Field(default_factory=dict)
    tolerance: float = 0.0
    normalise: str = "text"
    stop_early: bool = True
    turns: str | None = None

    def check(self, *, is_table: bool) -> None:
        """Check the keys of a program, before anything is imported.

        ``is_table`` says that the rows are a table of answers, so that no agent is asked.

        Raises:
            StudyError: If one of the two is missing, or another key does not go with them.
        """
        if (self.program is None) != (self.predictor is None):
            key, other = PROGRAM_KEYS if self.predictor is None else PROGRAM_KEYS[::-1]
            raise StudyError(
                f"`task.{key}` needs `task.{other}`: `program` is {MODULE_AND_NAME}, and "
                '`predictor` the path of the predictor in it that is searched, such as "answer".'
            )
        if self.program is None:
            return
        if set_too := sorted(self.model_fields_set & {"instructions", "module"}):
            raise StudyError(
                f"`task.{set_too[0]}` cannot be set with `task.program`, whose predictor has its "
                "own; remove it."
            )
        if self.turns is not None:
            raise StudyError(
                "`task.turns` cannot be set with `task.program`: only a mixture is asked turn by "
                "turn."
            )
        if is_table:
            raise StudyError(
                "`task.program` calls agents, but a table of recorded answers has none to call."
            )
