"""The tables of a study file, as they are written in TOML."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Table(BaseModel):
    """Frozen, and an unknown key is an error: a typo must not run for an hour."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskTable(Table):
    """What is asked, how it is put to an agent, and what counts as right."""

    signature: str
    instructions: str | None = None
    adapter: str | None = None
    agent: str = "predict"
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
    gain: float = Field(default=0.03, gt=0, lt=1)
    n_threads: int = Field(default=8, ge=1)


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
