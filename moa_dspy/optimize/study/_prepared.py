"""A study file with everything it names read and checked, before anything is asked or written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moa_dspy.calls import Calls, Ledger, Recording
from moa_dspy.calls._shelf import WritableShelf
from moa_dspy.data import Splits, fingerprint
from moa_dspy.optimize.context import StageCounts
from moa_dspy.optimize.progress import Watcher
from moa_dspy.optimize.rows import make_splits
from moa_dspy.optimize.search import ModelSearch
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.optimize.study._file import StudyFile, read_study
from moa_dspy.pool import Agent, Pool


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run of a study needs, whoever runs it.

    Attributes:
        study: The file.
        splits: Its rows, each with an id.
        metric: What counts as right.
        agents: Those that can be asked here.
        notes: On each agent that is left out.
        space: What may be tried.
    """

    study: StudyFile
    splits: Splits
    metric: Any
    agents: tuple[Agent, ...]
    notes: tuple[str, ...]
    space: SearchSpace

    @classmethod
    def read(cls, path: Path) -> Prepared:
        """Read the study of a file.

        Raises:
            MoaError: If anything in the file does not fit.
        """
        study = read_study(path)
        found, metric = study.make_splits(), study.make_metric()
        agents, notes = study.make_agents()
        splits = make_splits(found.train, found.val, found.test, seed=study.seed)
        return cls(study, splits, metric, agents, notes, study.make_space(agents))

    @property
    def parts(self) -> dict[str, Any]:
        """Every part that decides what the study finds, by name, as plain data."""
        study = self.study
        public = [{**asdict(a), "weights": None, "identity": a.identity} for a in self.agents]
        return {
            "seed": study.seed,
            "data": fingerprint(self.splits),
            "agents": public,
            "task": study.task.model_dump(),
            "space": study.space.model_dump(),
            "search": study.search.model_dump(exclude_none=True),
            "limits": study.limits.model_dump(),
            **({"prompts": study.prompts.model_dump()} if study.prompts else {}),
        }

    def make_pool(self, store: WritableShelf, ledger: Ledger) -> Pool:
        """Return the agents, whose calls go to ``store``."""
        wanted = self.study.calls
        calls = Calls(
            store,
            recording=Recording.read(wanted.recording) if wanted.recording else None,
            replay_only=wanted.replay_only,
            ledger=ledger,
        )
        return Pool(self.agents, calls=calls)

    def make_search(self, pool: Pool, watcher: Watcher, counts: StageCounts | None) -> ModelSearch:
        """Return the search; ``compile`` runs it."""
        return ModelSearch(
            self.metric,
            pool,
            space=self.space,
            limits=self.study.make_limits(),
            seed=self.study.seed,
            watcher=watcher,
            counts=counts,
            prompts=self.study.make_prompts(),
            **{**self.study.search.model_dump(), "sampler": self.study.make_sampler()},
        )

    def compile(self, search: ModelSearch, pool: Pool) -> Any:
        """Run the search and return the recommended program."""
        splits = self.splits
        return search.compile(
            self.study.make_student(pool),
            trainset=list(splits.train),
            valset=list(splits.val),
            testset=list(splits.test),
        )
