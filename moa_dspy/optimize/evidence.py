"""Shrinks what was measured towards what the response model makes of all of it."""

# DOCS: optimize/known: What the single agents' answers tell before anything else is asked. | optimize/gathering: What the trials measured, as the numbers that a choice is made from.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from statistics import fmean

import dspy
import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import DiversityMetric
from moa_dspy.optimize.context import SearchContext
from moa_dspy.optimize.early_facts import EarlyFacts, StudyEstimate, early_facts
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.forecast import Forecast
from moa_dspy.optimize.nodes import Outcome, scores
from moa_dspy.optimize.prompts.joint import without_prompts
from moa_dspy.optimize.prompts.prompt import PromptRegistry
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import (
    CandidateScores,
    Evidence,
    Limits,
    ScoreMatrix,
    canonical_evidence,
)
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.optimize.surrogate.features import Kernels, Traits
from moa_dspy.optimize.surrogate.gp import SurrogateModel
from moa_dspy.optimize.votes.ballots import Ballots
from moa_dspy.optimize.votes.smoothing import SmoothedVotes, smooth


@dataclass(frozen=True, slots=True)
class SurrogateShrinkage:
    """A ``Shrink`` of a selection.

    Attributes:
        pair: Diversity of the answers of two agents.
        prompts: Names of the prompts that were tried.
    """

    pair: Callable[[str, str], float]
    prompts: tuple[str, ...] = ()

    def __call__(
        self, evidence: Evidence, incumbent: CandidateScores, measured: Sequence[CandidateScores], /
    ) -> tuple[Sequence[float], Sequence[float]]:
        """See the protocol."""
        gains, errors = self.model(evidence, measured).gains(incumbent.architecture)
        return gains[: len(measured)].tolist(), errors[: len(measured)].tolist()

    def model(self, evidence: Evidence, measured: Sequence[CandidateScores]) -> SurrogateModel:
        """Return the model of all that was measured, what was stopped early included."""
        means = {name: float(scores.mean()) for name, scores in evidence.singles.items()}
        stopped = [one for one in evidence.measured if not one.is_whole]
        known = [*measured, *stopped]
        return SurrogateModel(
            Kernels.of(Traits(means, self.pair, self.prompts)),
            [one.architecture for one in known],
            np.array([one.scores for one in known]),
        )


@dataclass(frozen=True)
class SingleAgents:
    """The outcomes of each agent alone on the same rows, in the pool's order.

    Attributes:
        singles: By agent.
        space: Says which votes may be tried.
        limits: Say which may be picked.
        seed: Of the redrawing of answers.
        estimate: What the whole study will take.
        book: The prompts that an architecture may name.
    """

    singles: Mapping[str, Sequence[Outcome]]
    space: SearchSpace
    limits: Limits
    seed: int = 0
    estimate: StudyEstimate | None = None
    book: PromptRegistry | None = None
    _pairs: dict[tuple[str, str], float] | None = None
    _admitted: dict[tuple[str, ...], bool] = field(default_factory=dict)

    @cached_property
    def scores(self) -> dict[str, ScoreMatrix]:
        """Score per row of each agent."""
        found = {name: scores(outcomes) for name, outcomes in self.singles.items()}
        return {name: np.array(values, np.float64) for name, values in found.items()}

    @cached_property
    def means(self) -> dict[str, float]:
        """Mean score of each agent."""
        return {name: float(values.mean()) for name, values in self.scores.items()}

    @cached_property
    def ranking(self) -> tuple[str, ...]:
        """Agents, best mean score first; the pool's order breaks ties."""
        return tuple(sorted(self.scores, key=lambda name: -round(self.scores[name].mean(), 12)))

    @cached_property
    def ballots(self) -> Ballots | None:
        """What votes would count; None where none may be tried, or answers are no ballots."""
        answered = [o for outcomes in self.singles.values() for o in outcomes if not o.failure]
        may_vote = "vote" in self.space.combines and self.space.searches_layers
        if not may_vote or any(outcome.ballot is None for outcome in answered):
            return None
        ballots = {name: [o.ballot for o in outcomes] for name, outcomes in self.singles.items()}
        return Ballots.of(ballots, {n: scores(o) for n, o in self.singles.items()})

    @cached_property
    def smoothed(self) -> SmoothedVotes | None:
        """Every vote of the best agents, on redrawn answers."""
        if self.ballots is None:
            return None
        widths = range(self.space.min_width, self.space.max_width + 1)
        return smooth(self.ballots, widths=widths, seed=self.seed, admits=self.admits)

    @property
    def forecast(self) -> Forecast:
        """What an architecture's question will cost, from what its agents cost alone."""
        singles = self.singles.items()
        return Forecast(
            usd={name: fmean(outcome.usd for outcome in found) for name, found in singles},
            seconds={name: fmean(outcome.seconds for outcome in found) for name, found in singles},
        )

    @cached_property
    def early(self) -> EarlyFacts:
        """What the user is told before more money is spent."""
        return early_facts(
            self.scores,
            ballots=self.ballots,
            max_width=self.space.max_width,
            estimate=self.estimate,
        )

    def pair(self, metric: DiversityMetric) -> Callable[[str, str], float]:
        """Return what says how diverse the answers of two agents are; 0 for copies of one."""
        if self._pairs is None:
            found = self._diversities(metric)
            object.__setattr__(self, "_pairs", found)
        pairs = self._pairs or {}
        # What the samples of one agent differ in is not known yet.
        return lambda a, b: 0.0 if a == b else pairs[min(a, b), max(a, b)]

    def _diversities(self, metric: DiversityMetric) -> dict[tuple[str, str], float]:
        texts = {n: [(o.layer or ("",))[0] for o in found] for n, found in self.singles.items()}
        return {
            (a, b): fmean(metric(pair) for pair in zip(texts[a], texts[b], strict=True))
            for a, b in combinations(sorted(texts), 2)
        }

    def admits(self, members: tuple[str, ...]) -> bool:
        """Whether the vote of these members is in the space and within the limits."""
        if members not in self._admitted:
            self._admitted[members] = self._admits(members)
        return self._admitted[members]

    def _admits(self, members: tuple[str, ...]) -> bool:
        if self.limits == Limits():
            return len(members) == 1 or self._may_vote(members)
        asked = [self.singles[name] for name in members]
        costs = {
            "calls": sum(fmean(outcome.calls for outcome in outcomes) for outcomes in asked),
            "usd": sum(fmean(outcome.usd for outcome in outcomes) for outcomes in asked),
            "seconds": fmean(max(o.seconds for o in row) for row in zip(*asked, strict=True)),
        }
        is_within = self.limits.allow(**costs)
        return is_within and (len(members) == 1 or self._may_vote(members))

    def _may_vote(self, members: tuple[str, ...]) -> bool:
        return self.space.holds(Architecture((members,), None, "vote"))

    def canonical(self, architecture: Architecture) -> Architecture:
        """Give an architecture its final form.

        The best decide ties, a prompt has one name, and a listed one keeps its order of seats.
        """
        found = canonical_evidence(architecture, self.ranking)
        return self.space.seated(found if self.book is None else self.book.canonical(found))


@dataclass(slots=True)
class EvidenceBuilder:
    """Turns records into evidence; a record never changes, so each is turned once.

    Args:
        context: Says what may be picked.
        known: Of the single agents.
        evaluator: Knows every score.
        rows: Of val, in the order of measuring.
        records: Of the search, which adds to them.
        may_prompt: Whether a mixture may be picked with a prompt of the search.
    """

    context: SearchContext
    known: SingleAgents
    evaluator: Evaluator
    rows: Sequence[dspy.Example]
    records: Mapping[Architecture, TrialRecord]
    may_prompt: bool = True
    _measured: dict[Architecture, CandidateScores] = field(default_factory=dict)

    def measured(self) -> list[CandidateScores]:
        """Return every architecture with its scores, in the order of measuring."""
        return [self._of(*pair) for pair in self.records.items()]

    def evidence(self) -> Evidence:
        """Return all that was measured on val."""
        known, space = self.known, self.context.space
        found = Evidence(
            singles=known.scores,
            measured=tuple(self.measured()),
            ballots=known.ballots,
            widths=(space.min_width, space.max_width),
            admits=known.admits,
            shrink=self.shrink,
            seed=self.context.seed,
            smoothed=known.smoothed,
        )
        return found if self.may_prompt else without_prompts(found)

    @property
    def shrink(self) -> SurrogateShrinkage:
        """What judges an architecture that is no plain vote."""
        prompts = {one.prompt for one in self.records if one.prompt is not None}
        return SurrogateShrinkage(self.known.pair(self.context.diversity), tuple(sorted(prompts)))

    def _of(self, architecture: Architecture, record: TrialRecord) -> CandidateScores:
        context = self.context
        if architecture not in self._measured:
            found = np.full(len(self.rows), np.nan)
            rows = self.rows[: record.rows]
            found[: record.rows] = scores(self.evaluator.measure(architecture, rows))
            self._measured[architecture] = CandidateScores(
                architecture,
                found,
                calls=record.calls,
                usd=record.usd,
                bonus=context.diversity_weight * record.diversity,
                # Rivals are measured whatever the user demands, but not picked against it.
                is_admitted=context.limits.admit(record)
                and context.space.keeps_constraints(architecture),
            )
        return self._measured[architecture]
