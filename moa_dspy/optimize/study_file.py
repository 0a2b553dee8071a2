"""The tables of a study file, as they are written in TOML."""

# DOCS: optimize/study/_samplers: Optuna's samplers as a study file names them. | optimize/prompts/_table: The table ``[prompts]`` of a study file. | optimize/study/_file: A study as written in TOML: the only place where names become objects.

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import dspy
import optuna
from pydantic import BaseModel, ConfigDict, Field

from moa_dspy._toml import check_table, read_toml
from moa_dspy.adapters import ADAPTERS
from moa_dspy.agent import Agent, available, read_agents
from moa_dspy.aggregators import NORMALISERS
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data import BENCHMARKS, METRICS, Splits, read_rows, split_rows
from moa_dspy.diversity import DIVERSITY_METRICS as DIVERSITY
from moa_dspy.errors import StudyError
from moa_dspy.layers import SEAT_MODULES
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.named import imported, made, unknown
from moa_dspy.optimize.objectives import OBJECTIVES
from moa_dspy.optimize.prompts.builtin import OPTIMIZERS
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.rules import providers_of
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.pool import Pool


class Table(BaseModel):
    """Frozen, and an unknown key is an error: a typo must not run for an hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskTable(Table):
    """What is asked, how it is put to an agent, and what counts as right."""

    signature: str
    instructions: str | None = None
    adapter: str | None = None
    module: str = "predict"
    metric: str
    normalise: str = "text"


class SizesTable(Table):
    """Rows per split."""

    train: int | None = Field(default=None, ge=0)
    val: int | None = Field(default=None, ge=1)
    test: int | None = Field(default=None, ge=1)


class DataTable(Table):
    """Where the rows are, and which split each is in: by a column, or drawn by sizes.

    Rows are those of a file, by its ``path`` and ``inputs``, or of a ``benchmark``: its
    ``split`` on the hub, or in the local copy at ``path``.
    """

    path: Path | None = None
    inputs: tuple[str, ...] = Field(default=(), min_length=1)
    columns: dict[str, str] = {}
    benchmark: str | None = None
    split: str | None = None
    split_column: str | None = None
    sizes: SizesTable | None = None
    limit: SizesTable = SizesTable()


class CallsTable(Table):
    """Where answers come from besides the endpoints."""

    recording: Path | None = None
    replay_only: bool = False
    outage_seconds: float = Field(default=900.0, gt=0)


class SpaceTable(Table):
    """The search space; see ``SearchSpace``. Without ``agents``, the whole pool."""

    agents: tuple[str, ...] = ()
    combines: tuple[str, ...] = ("synthesize", "vote")
    aggregators: tuple[str, ...] = ()
    rankers: tuple[str, ...] = ()
    max_depth: int = 2
    min_width: int = 2
    max_width: int = 3
    max_samples: int = 1
    listed: tuple[str, ...] = ()
    must_include: tuple[str, ...] = ()
    never_together: tuple[tuple[str, str], ...] = ()
    providers: tuple[str, ...] = ()
    max_per_provider: int | None = None
    orders: tuple[str, ...] = ("name",)


class SearchTable(Table):
    """Options of ``ModelSearch``."""

    n_trials: int = Field(default=40, ge=1)
    objectives: tuple[str, ...] = ("win_rate", "diversity")
    diversity: str = "disagreement"
    diversity_weight: float = Field(default=0.0, ge=0)
    sampler: str | None = None
    random_share: float = Field(default=0.2, ge=0, lt=1)
    min_gain: float = Field(default=0.03, gt=0, lt=1)
    num_threads: int = Field(default=8, ge=1)


class LimitsTable(Table):
    """What one question may cost at most."""

    calls: float | None = Field(default=None, gt=0)
    usd: float | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)


class BudgetTable(Table):
    """What the study may spend at most."""

    calls: int | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    usd: float | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)


SAMPLERS: Final[dict[str, Any]] = {
    "nsga2": optuna.samplers.NSGAIISampler,
    "random": optuna.samplers.RandomSampler,
    "tpe": optuna.samplers.TPESampler,
}


def make_sampler(name: str | None, *, seed: int) -> Any:
    """Return the sampler that a study names; None where the response model proposes.

    Raises:
        StudyError: If it is unknown, or cannot be made.
    """
    if name is None:
        return None
    if name in SAMPLERS:
        return SAMPLERS[name](seed=seed)
    return made("search.sampler", name, SAMPLERS, has="sample_independent")


class PromptsTable(BaseModel):
    """Options of ``PromptOptions``; the optimizer by name, or ``package.module:name``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: tuple[str, ...] = ()
    texts: dict[str, str] = {}
    optimizer: str | None = None
    proposer_agent: str | None = None
    rounds: int = Field(default=1, ge=1)
    share: float = Field(default=0.3, gt=0, lt=1)
    top: int = Field(default=2, ge=1)
    demos: int = Field(default=3, ge=0)
    n_prompts: int = Field(default=6, ge=1)
    tuning_share: float = Field(default=0.5, ge=0, lt=1)

    def make(self) -> PromptOptions:
        """Return the options.

        Raises:
            StudyError: If a name is unknown or the options do not fit each other.
        """
        wanted: Any = self.optimizer
        if wanted is not None and ":" in wanted:
            wanted = made("prompts.optimizer", wanted, OPTIMIZERS, has="compile")
        return PromptOptions(**{**self.model_dump(), "optimizer": wanted})


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
            module=SEAT_MODULES[task.module],
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
    study = check_table(StudyFile, content, where=str(path), error=StudyError)
    names: list[tuple[str, str | None, Any]] = [
        ("task.adapter", study.task.adapter, ADAPTERS),
        ("task.module", study.task.module, SEAT_MODULES),
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
