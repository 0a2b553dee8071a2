"""A study as written in TOML: the only place where names become objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
from pydantic import Field

from moa_dspy.adapters import ADAPTERS
from moa_dspy.aggregators import NORMALISERS
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data import BENCHMARKS, METRICS, Splits, read_rows, split_rows
from moa_dspy.diversity import METRICS as DIVERSITY
from moa_dspy.errors import StudyError
from moa_dspy.mixture import AGENT_MODULES, MixtureOfAgents
from moa_dspy.optimize.named import imported, unknown
from moa_dspy.optimize.objectives import OBJECTIVES
from moa_dspy.optimize.prompts import PromptOptions, PromptsTable
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space import SearchSpace, providers_of
from moa_dspy.optimize.study._samplers import make_sampler
from moa_dspy.optimize.study._tables import (
    BudgetTable,
    CallsTable,
    DataTable,
    LimitsTable,
    SearchTable,
    SpaceTable,
    Table,
    TaskTable,
)
from moa_dspy.pool import Agent, Pool, available, read_agents
from moa_dspy.toml_file import check, read_toml


class StudyFile(Table):
    """A whole study. Paths are relative to the file."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = 0
    task: TaskTable
    data: DataTable
    pool: Path | None = None
    agents: tuple[Agent, ...] = ()
    calls: CallsTable = CallsTable()
    space: SpaceTable = SpaceTable()
    search: SearchTable = SearchTable()
    limits: LimitsTable = LimitsTable()
    budget: BudgetTable = BudgetTable()
    prompts: PromptsTable | None = None

    def with_paths_from(self, folder: Path) -> StudyFile:
        """Return the study with every path made relative to ``folder``."""
        update: dict[str, Any] = {}
        if self.data.path is not None:
            update["data"] = self.data.model_copy(update={"path": folder / self.data.path})
        if self.pool is not None:
            update["pool"] = folder / self.pool
        if self.calls.recording is not None:
            recording = folder / self.calls.recording
            update["calls"] = self.calls.model_copy(update={"recording": recording})
        return self.model_copy(update=update)

    def make_agents(self) -> tuple[tuple[Agent, ...], tuple[str, ...]]:
        """Return the agents that can be asked here, and a line on each that is left out.

        A replay asks nobody, so there no agent is left out.
        """
        if (self.pool is None) == (not self.agents):
            raise StudyError("A study has either `pool`, a file, or `[[agents]]`, and not both.")
        agents = self.agents or tuple(read_agents(self.pool or Path()))
        if self.calls.replay_only:
            return agents, ()
        kept, notes = available(agents)
        return tuple(kept), tuple(notes)

    def make_space(self, agents: tuple[Agent, ...], prompts: tuple[str, ...] = ()) -> SearchSpace:
        """Return the space over all agents, or those that ``[space]`` names.

        Args:
            agents: Of the pool.
            prompts: Names of the prompts that a search may give to who synthesizes.
        """
        options = self.space.model_dump()
        known = [agent.name for agent in agents]
        for name in self.space.agents:
            if name not in known:
                raise StudyError(
                    f"`space.agents`: unknown agent {name!r}; the pool has {', '.join(known)}."
                )
        options["agents"] = self.space.agents or tuple(known)
        options["listed"] = tuple(Architecture.parse(text) for text in self.space.listed)
        return SearchSpace(**options, prompts=prompts, provider_of=providers_of(agents))

    def make_splits(self) -> Splits:
        """Read the rows and split them."""
        data = self.data
        if data.split_column is None and data.sizes is None:
            raise StudyError("`data` needs `split_column` or `sizes`, to know the three splits.")
        rows = _rows(data)
        sizes = data.sizes.model_dump(exclude_none=True) if data.sizes else None
        splits = split_rows(rows, column=data.split_column, sizes=sizes, seed=self.seed)
        limit = data.limit
        return splits.limit(n_train=limit.train, n_val=limit.val, n_test=limit.test)

    def make_student(self, pool: Pool) -> MixtureOfAgents:
        """Return the program whose seats are to be filled."""
        task = self.task
        try:
            signature = dspy.make_signature(task.signature, task.instructions)
        except ValueError as error:
            raise StudyError(f"`task.signature`: {error}") from error
        return MixtureOfAgents(
            signature,
            Architecture.single(next(iter(pool))),
            pool=pool,
            agent=AGENT_MODULES[task.agent],
            adapter=ADAPTERS[task.adapter]() if task.adapter else None,
            normalise=task.normalise,
        )

    def make_metric(self) -> Any:
        """Return the metric: one of ours by name, or ``package.module:name``."""
        name = self.task.metric
        return METRICS[name] if name in METRICS else imported("task.metric", name, METRICS)

    def make_sampler(self) -> Any:
        """Return Optuna's sampler; None where the response model proposes."""
        return make_sampler(self.search.sampler, seed=self.seed)

    def make_limits(self) -> Limits:
        """Return what a question may cost."""
        return Limits(**self.limits.model_dump())

    def make_prompts(self) -> PromptOptions | None:
        """Return what the search may do to prompts; None without a table."""
        return None if self.prompts is None else self.prompts.make()

    def make_budget(self) -> Budget:
        """Return what the study may spend."""
        return Budget(**self.budget.model_dump())


def read_study(path: Path) -> StudyFile:
    """Read and check a study file; nothing is run and nothing is written.

    Raises:
        StudyError: If the file cannot be read, or a field does not fit: field, value, choices.
    """
    content = read_toml(path, error=StudyError)
    study = check(StudyFile, content, where=str(path), error=StudyError)
    names: list[tuple[str, str | None, Any]] = [
        ("task.adapter", study.task.adapter, ADAPTERS),
        ("task.agent", study.task.agent, AGENT_MODULES),
        ("task.normalise", study.task.normalise, NORMALISERS),
        ("data.benchmark", study.data.benchmark, BENCHMARKS),
        ("search.diversity", study.search.diversity, DIVERSITY),
        *(("search.objectives", name, OBJECTIVES) for name in study.search.objectives),
    ]
    for field, name, registry in names:
        if name is not None and name not in registry:
            raise unknown(field, name, registry)
    _check_rows_are_named(study.data, where=str(path))
    study.make_prompts()
    study.make_sampler()
    return study.with_paths_from(path.parent)


def _check_rows_are_named(data: DataTable, *, where: str) -> None:
    """Rows come from a file with inputs, or from a benchmark that knows its own."""
    if data.benchmark is None:
        for key, value in {"path": data.path, "inputs": data.inputs}.items():
            if not value:
                raise StudyError(f"{where}.data.{key}: missing (or `benchmark`).")
        if data.split is not None:
            raise StudyError("`data.split` goes with `data.benchmark`; else name `split_column`.")
    elif data.inputs or data.columns:
        raise StudyError("`data` has either `benchmark` or `inputs` and `columns`, and not both.")


def _rows(data: DataTable) -> list[dspy.Example]:
    if data.benchmark is not None:
        return BENCHMARKS[data.benchmark].read(data.path, split=data.split)
    return read_rows(data.path or Path(), inputs=list(data.inputs), columns=data.columns or None)
