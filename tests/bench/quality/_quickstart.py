"""The quickstart's space, in which every call was recorded, with the scores of all of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import dspy
import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.calls import Calls, Recording
from moa_dspy.data import Splits
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Evaluator, SearchSpace, StudyResult
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.search import run_search
from moa_dspy.optimize.study_file import StudyFile, read_study
from moa_dspy.pool import Pool
from tests.bench.quality._folder import Answers, Indices, Scores

STUDY = Path(__file__).parents[3] / "optimize/quickstart.toml"


@dataclass(frozen=True, slots=True)
class Quickstart:
    """Its rows but those of train, and what is known of them.

    Attributes:
        study: The study file.
        pool: Replays the recording.
        train: Rows that nobody scores.
        rows: Those of val and test.
        space: What may be tried.
        node_cache: What was read of the recording, so that it is read once for all searches.
        singles: Of each agent alone, on ``rows``.
        others: Score on each row of all that is neither a single agent nor a vote of several.
    """

    study: StudyFile
    pool: Pool
    train: tuple[dspy.Example, ...]
    rows: tuple[dspy.Example, ...]
    space: SearchSpace
    node_cache: NodeCache
    singles: Answers
    others: dict[str, Scores]

    def search(self, val: Indices, test: Indices) -> StudyResult:
        """Run the study as its file says, on these rows."""
        study = self.study
        search = study.make_search(self.pool, study.make_metric())
        val_rows, test_rows = (tuple(self.rows[i] for i in part) for part in (val, test))
        splits = Splits(self.train, val_rows, test_rows)
        student = _student(study, self.pool)
        return run_search(search.options, student, splits, node_cache=self.node_cache).result


@lru_cache(maxsize=1)
def quickstart() -> Quickstart:
    """Read the study and measure its whole space; no model is asked."""
    study = read_study(STUDY)
    agents, _ = study.make_agents()
    recording = Recording.read(study.calls.recording or Path())
    pool = Pool(agents, calls=Calls(recording=recording, replay_only=True))
    splits, space, cache = study.make_splits(), study.make_space(agents), NodeCache()
    rows = (*splits.val, *splits.test)
    evaluator = Evaluator(_student(study, pool), study.make_metric(), node_cache=cache)
    singles = _singles(evaluator, tuple(pool), rows)
    others = {
        str(arch): np.array([outcome.score for outcome in evaluator.measure(arch, rows)])
        for arch in _others(space)
    }
    return Quickstart(study, pool, splits.train, rows, space, cache, singles, others)


def _student(study: StudyFile, pool: Pool) -> MixtureOfAgents:
    made: MixtureOfAgents = study.make_student(pool)
    return made


def _singles(
    evaluator: Evaluator, names: tuple[str, ...], rows: tuple[dspy.Example, ...]
) -> Answers:
    found = [evaluator.measure(Architecture.single(name), rows) for name in names]
    codes = np.full((len(names), len(rows)), -1, np.int16)
    for column, outcomes in enumerate(zip(*found, strict=True)):
        ballots = [o.ballot for o in outcomes if o.ballot is not None and not o.failure]
        seen = {ballot: code for code, ballot in enumerate(dict.fromkeys(ballots))}
        for row, o in enumerate(outcomes):
            if o.ballot is not None and not o.failure:
                codes[row, column] = seen[o.ballot]
    scores = np.array([[o.score for o in outcomes] for outcomes in found])
    return Answers(names, codes, scores, (True,) * len(names))


def _others(space: SearchSpace) -> list[Architecture]:
    """Return the architectures whose score is no matter of who wins a tie."""
    found = [arch for arch in space.listed if arch.combine != "vote"]
    for number in range(1, 1 << len(space.agents)):
        layer = tuple(name for i, name in enumerate(space.agents) if number >> i & 1)
        if space.min_width <= len(layer) <= space.max_width:
            found.append(Architecture((layer,), None, "select"))
    listed_votes = [arch for arch in space.listed if arch.combine == "vote"]
    return [*dict.fromkeys(found), *listed_votes]
