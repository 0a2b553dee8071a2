"""A study file: its tables, their checks, and the objects that it names.

The tables ``[space]``, ``[search]``, ``[limits]``, ``[budget]`` and ``[prompts]`` have the names,
types and defaults of ``SearchSpace``, ``ModelSearch``, ``Limits``, ``Budget`` and
``PromptOptions``, which check their values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import dspy
from pydantic import BaseModel, Field

from moa_dspy.adapters import ADAPTERS
from moa_dspy.agent import Agent, agents_of, available, read_agents
from moa_dspy.aggregators import NORMALISERS
from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget
from moa_dspy.data import BENCHMARKS, FIELD_METRICS, METRICS, FieldMetric, Splits
from moa_dspy.data.splits import with_turns
from moa_dspy.errors import ArchitectureError, StudyError
from moa_dspy.files import (
    check_table,
    code_digest,
    imported,
    imported_instance,
    options_table,
    read_toml,
    shown_value,
    unknown,
)
from moa_dspy.layers import SEAT_MODULES
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.judge_table import JudgeTable
from moa_dspy.optimize.metric import JudgeOptions
from moa_dspy.optimize.objectives import OBJECTIVES
from moa_dspy.optimize.options import (
    PROGRAM_KEYS,
    DataTable,
    Table,
    TaskTable,
    check_seed,
    named_diversity,
    named_sampler,
    with_recorded_task,
)
from moa_dspy.optimize.prompts.builtin import OPTIMIZERS
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.search import ModelSearch
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.several import program_of
from moa_dspy.optimize.space.rules import providers_of
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.pool import Pool
from moa_dspy.presets import TurnByTurn, with_history


class CallsTable(Table):
    """Sources of answers besides the endpoints."""

    recording: Path | None = None
    replay_only: bool = False
    outage_seconds: float = Field(default=900.0, gt=0, allow_inf_nan=False)


SpaceTable: Final = options_table(
    SearchSpace,
    without=("provider_of", "prompts", "ranking"),
    agents=(tuple[str, ...], ()),
    listed=(tuple[str, ...], ()),
)
SearchTable: Final = options_table(
    ModelSearch,
    without=(
        *("metric", "pool", "space", "limits", "budget", "prompts", "seed"),
        *("callbacks", "judge", "predictor", "storage", "display_progress"),
    ),
    sampler=(str | None, None),
    diversity=(str | None, None),
)
LimitsTable: Final = options_table(Limits)
BudgetTable: Final = options_table(Budget)
PromptsTable: Final = options_table(
    PromptOptions, without=("compile_options",), optimizer=(str | None, None)
)


class StudyTables(Table):
    """All keys of a study file."""

    name: str
    seed: int = 0
    task: TaskTable
    data: DataTable
    pool: Path | None = None
    agents: Any = ()
    calls: CallsTable = CallsTable()
    space: SpaceTable = SpaceTable()  # type: ignore[valid-type]  # made above
    search: SearchTable = SearchTable()  # type: ignore[valid-type]
    limits: LimitsTable = LimitsTable()  # type: ignore[valid-type]
    budget: BudgetTable = BudgetTable()  # type: ignore[valid-type]
    prompts: PromptsTable | None = None  # type: ignore[valid-type]
    judge: JudgeTable | None = None


RENAMED: Final = {
    "task.agent": "task.module",
    "search.gain": "search.min_gain",
    "search.n_threads": "search.num_threads",
}
"""Keys of earlier study files, and their names now."""


@dataclass(frozen=True)
class StudyFile:
    """A study file whose values are checked; its paths are relative to the working folder.

    Attributes:
        name: Name of the study, and of its folder.
        seed: Seed of everything random.
        task: Signature, adapter, metric.
        data: The rows.
        pool: The file of the agents; None if the study lists them.
        agents: The agents that the study lists.
        calls: Recording and outages.
        space: Given options of ``SearchSpace``; architectures are texts.
        search: Given options of ``ModelSearch``; the sampler is a name.
        limits: On the costs of one question.
        budget: Budget of the whole study.
        prompts: Prompts as a choice of the search, or None.
        parts: Every table that decides what the study finds, as plain data.
        judge: Judge of answers that are compared, or None.
        folder: Folder of the file; modules that it names may stand there.
        path: Path of the file; None where the study is plain data.
    """

    name: str
    seed: int
    task: TaskTable
    data: DataTable
    pool: Path | None
    agents: tuple[Agent, ...]
    calls: CallsTable
    space: Mapping[str, Any]
    search: Mapping[str, Any]
    limits: Limits
    budget: Budget
    prompts: PromptOptions | None
    parts: Mapping[str, Any]
    judge: JudgeTable | None = None
    folder: Path | None = None
    path: Path | None = None

    @property
    def agents_file(self) -> Path | None:
        """The file that lists the agents: a pool, or the study itself; None if answers do."""
        return None if self.data.reader is not None else self.pool or self.path

    def with_paths_from(self, folder: Path) -> StudyFile:
        """Return the study with every path made relative to ``folder``."""
        data, calls = self.data, self.calls
        if data.path is not None:
            data = data.model_copy(update={"path": folder / data.path})
        if calls.recording is not None:
            calls = calls.model_copy(update={"recording": folder / calls.recording})
        pool = None if self.pool is None else folder / self.pool
        judge = self.judge
        if judge is not None and judge.path is not None:
            judge = judge.model_copy(update={"path": folder / judge.path})
        agents = tuple(agent.beside(folder) for agent in self.agents)
        return replace(self, data=data, pool=pool, agents=agents, calls=calls, judge=judge)

    def make_agents(self) -> tuple[tuple[Agent, ...], tuple[str, ...]]:
        """Return the agents that can be asked here, and a line on each that is left out.

        A replay asks no agent, so there none is left out.
        """
        if (self.pool is None) == (not self.agents):
            given = "neither" if self.pool is None else "both"
            raise StudyError(
                f"A study has either `pool`, a file, or `[[agents]]`, but this one has {given}."
            )
        agents = self.agents or tuple(read_agents(self.pool or Path()))
        if self.calls.replay_only:
            return agents, ()
        kept, notes = available(agents)
        return tuple(kept), tuple(notes)

    def make_space(self, agents: tuple[Agent, ...], prompts: tuple[str, ...] = ()) -> SearchSpace:
        """Return the space over all agents, or those that ``[space]`` names.

        Args:
            agents: Agents of the pool.
            prompts: Names of the prompts that a search may give to a synthesizing aggregator.
        """
        names = tuple(agent.name for agent in agents)
        options: dict[str, Any] = {"agents": names, **self.space}
        if self.task.metric is None:
            # Texts without a metric are never equal, so a vote says nothing of them.
            options.setdefault("combines", ("synthesize",))
        options["agents"] = options["agents"] or names
        for name in options["agents"]:
            if name not in names:
                raise StudyError(
                    f"`space.agents`: unknown agent {name!r}; the pool has {', '.join(names)}."
                )
        options["listed"] = tuple(map(_listed, options.get("listed", ())))
        return SearchSpace(**options, prompts=prompts, provider_of=providers_of(agents))

    def make_splits(self) -> Splits:
        """Read the rows and split them; of conversations, the turns are the input.

        Raises:
            DataError: If a row has no list of turns.
        """
        splits = self.data.make_splits(seed=self.seed)
        return splits if (field := self.task.turns) is None else with_turns(splits, field)

    @cached_property
    def signature(self) -> Any:
        """What a row asks and what is scored; of a conversation, one turn."""
        signature = _signature(self.task)
        return signature if self.task.turns is None else with_history(signature)

    def make_student(self, pool: Pool) -> Any:
        """Return what the search fills: a mixture, ``TurnByTurn``, or a program with a mixture."""
        task = self.task
        rules: dict[str, Any] = {
            "pool": pool,
            "adapter": None if task.adapter is None else ADAPTERS[task.adapter](),
            "normalise": task.normalise,
            "stop_early": task.stop_early,
        }
        if task.program is not None:
            return program_of(task.program, task.predictor or "", beside=self.folder, **rules)
        first, module = Architecture.single(next(iter(pool))), SEAT_MODULES[task.module]
        mixture = MixtureOfAgents(self.signature, first, module=module, **rules)
        return mixture if task.turns is None else TurnByTurn(mixture, turns=task.turns)

    def make_metric(self) -> Any:
        """Return the metric: a known one by name, or ``package.module:name``; None without one."""
        name, task = self.task.metric, self.task
        if name is None:
            if self.judge is None:
                raise StudyError("A study needs `task.metric` or the table `[judge]`.")
            return None
        if name in FIELD_METRICS:
            return FieldMetric.of(
                name, _signature(task), weights=task.weights, tolerance=task.tolerance
            )
        if task.weights or task.tolerance:
            raise StudyError(
                "`task.weights` and `task.tolerance` can only be set with a metric of fields "
                f"({', '.join(sorted(FIELD_METRICS))}), but `task.metric` is {name!r}."
            )
        if name in METRICS:
            return METRICS[name]
        names = (*METRICS, *FIELD_METRICS)
        metric = imported("task.metric", name, names, beside=self.folder)
        if not callable(metric):
            raise StudyError(
                f"`task.metric`: {name!r} must be a function, but is {shown_value(metric)}."
            )
        return metric

    def make_search(self, pool: Pool, metric: Any) -> ModelSearch:
        """Return the search; ``compile`` runs it.

        Args:
            pool: The agents.
            metric: From ``make_metric``.
        """
        return ModelSearch(
            metric,
            pool,
            space=self.make_space(tuple(pool.values())),
            limits=self.limits,
            seed=self.seed,
            prompts=self.prompts,
            judge=self._judge(pool),
            **{**self.search, "sampler": self.make_sampler(), "diversity": self.make_diversity()},
        )

    def _judge(self, pool: Pool) -> JudgeOptions | None:
        if self.judge is None:
            return None
        turns = self.task.turns
        return self.judge.make(pool, seed=self.seed, turns=turns, beside=self.folder)

    def make_sampler(self) -> Any:
        """Return Optuna's sampler; None where the surrogate model proposes."""
        return named_sampler(self.search.get("sampler"), seed=self.seed, beside=self.folder)

    def make_diversity(self) -> Any:
        """Return the diversity metric; None if the study names none."""
        name = self.search.get("diversity")
        return name and named_diversity(name, beside=self.folder)


def read_study(path: Path | str) -> StudyFile:
    """Read and check a study file; nothing is run and nothing is written.

    Raises:
        StudyError: If the file cannot be read, or a field does not fit: field, value, choices.
    """
    path = Path(path)
    content = read_toml(path, error=StudyError)
    study = check_study(content, where=str(path), folder=path.parent)
    return replace(study.with_paths_from(path.parent), path=path)


def check_study(content: Mapping[str, Any], *, where: str, folder: Path | None = None) -> StudyFile:
    """Return the study of a file's content; its paths are as they are written.

    Args:
        content: Plain data.
        where: Begins errors.
        folder: Folder of the file.

    Raises:
        StudyError: If a field does not fit.
        PoolError: If an agent does not.
    """
    content = with_recorded_task(content)
    tables: Any = check_table(StudyTables, content, where=where, error=StudyError, renamed=RENAMED)
    _check_names(tables)
    tables.data.check(where=where)
    agents = agents_of(tables.agents, where=f"{where}.agents")
    study = StudyFile(
        name=tables.name,
        seed=tables.seed,
        task=tables.task,
        data=tables.data,
        pool=tables.pool,
        agents=agents,
        calls=tables.calls,
        space=_set_fields(tables.space),
        search=_set_fields(tables.search),
        limits=Limits(**_set_fields(tables.limits)),
        budget=Budget(**_set_fields(tables.budget)),
        prompts=None if tables.prompts is None else _prompts(tables.prompts, folder),
        parts=_parts(tables, folder),
        judge=tables.judge,
        folder=folder,
    )
    _signature(study.task)
    study.make_sampler()
    study.make_diversity()
    return study


def _set_fields(table: BaseModel) -> dict[str, Any]:
    return {name: getattr(table, name) for name in table.model_fields_set}


def _prompts(table: BaseModel, folder: Path | None) -> PromptOptions:
    options = _set_fields(table)
    optimizer = options.get("optimizer")
    if optimizer is not None and ":" in optimizer:
        options["optimizer"] = imported_instance(
            "prompts.optimizer", optimizer, OPTIMIZERS, has="compile", beside=folder
        )
    return PromptOptions(**options)


def _parts(tables: Any, folder: Path | None) -> dict[str, Any]:
    names = ("task", "space", "search", "limits", "prompts")
    plain = tables.model_dump(include={*names}, exclude={"search": {"num_threads"}})
    task = tables.task
    own = {
        "task.program": task.program,
        "task.metric": task.metric,
        "search.sampler": tables.search.sampler,
        "search.diversity": tables.search.diversity,
        "prompts.optimizer": tables.prompts and tables.prompts.optimizer,
    }
    # Code of the user's own may change while its name stays.
    plain["code"] = {
        text: code_digest(imported(field, text, (), beside=folder))
        for field, text in own.items()
        if text and ":" in text
    }
    if task.program is None:
        plain["task"] = {k: v for k, v in plain["task"].items() if k not in PROGRAM_KEYS}
    return {"seed": tables.seed, **{k: v for k, v in plain.items() if v is not None}}


def _check_names(tables: Any) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*", tables.name):
        raise StudyError(
            "`name` must be a plain word of letters, digits, `_`, `-` and `.` that does not begin "
            f"with a dot, but got {shown_value(tables.name)}."
        )
    check_seed(tables.seed)
    tables.task.check(is_table=tables.data.reader is not None)
    names: list[tuple[str, str | None, Any]] = [
        ("task.adapter", tables.task.adapter, ADAPTERS),
        ("task.module", tables.task.module, SEAT_MODULES),
        ("task.normalise", tables.task.normalise, NORMALISERS),
        ("data.benchmark", tables.data.benchmark, BENCHMARKS),
        *(("search.objectives", name, OBJECTIVES) for name in tables.search.objectives),
    ]
    for field, name, registry in names:
        if name is not None and name not in registry:
            raise unknown(field, name, registry)


def _listed(text: str) -> Architecture:
    try:
        return Architecture.parse(text)
    except ArchitectureError as error:
        raise StudyError(f"`space.listed`: {error}") from error


def _signature(task: TaskTable) -> Any:
    try:
        return dspy.make_signature(task.signature, task.instructions)
    except Exception as error:
        # DSPy parses it as Python, so a typo raises what Python raises.
        message = " ".join(str(error).split())
        raise StudyError(
            f"`task.signature`: {task.signature!r} is not a signature such as 'question -> "
            f"answer': {message}"
        ) from error
