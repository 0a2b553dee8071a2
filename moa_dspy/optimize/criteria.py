"""The paper's two criteria for who belongs in a layer: performance, and diversity of outputs.

arXiv:2406.04692, section 1, states both and leaves the choosing to hand. Here
they rank the layers that a study tries first; they do not decide what is picked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from moa_dspy.diversity import DiversityMetric


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer with its two criteria, each in [0, 1]."""

    layer: tuple[str, ...]
    performance: float
    diversity: float


class Criteria:
    """Ranks layers from the single agents' answers alone, at no further call.

    Args:
        scores: Metric per example of each agent.
        texts: Answer per example of each agent.
        metric: Diversity of the texts of one example.
        weight: What a point of diversity counts against a point of performance. 0.25
            is the mild bonus that sometimes helped and seldom hurt when sets of
            recorded models were chosen; 0.5 and more lost.
    """

    def __init__(
        self,
        scores: Mapping[str, Sequence[float]],
        texts: Mapping[str, Sequence[str]],
        *,
        metric: DiversityMetric,
        weight: float = 0.25,
    ) -> None:
        self._scores = {name: fmean(values) for name, values in scores.items()}
        self._texts, self._metric, self.weight = texts, metric, weight
        self._pairs: dict[tuple[str, str], float] = {}

    def judge(self, layer: Sequence[str]) -> Candidate:
        """Return mean performance of the members, and mean diversity over pairs of seats."""
        pairs = [(a, b) for i, a in enumerate(layer) for b in layer[i + 1 :]]
        diversity = fmean(self._pair(a, b) for a, b in pairs) if pairs else 0.0
        return Candidate(tuple(layer), fmean(self._scores[name] for name in layer), diversity)

    def rank(self, layers: Iterable[Sequence[str]]) -> list[Candidate]:
        """Return candidates, most promising first; names break ties."""
        judged = [self.judge(layer) for layer in layers]
        return sorted(judged, key=lambda c: (-(c.performance + self.weight * c.diversity), c.layer))

    def best_agents(self) -> list[str]:
        """Return agent names, best mean score first; the pool's order breaks ties."""
        return sorted(self._scores, key=lambda name: -self._scores[name])

    def _pair(self, a: str, b: str) -> float:
        # Copies of one agent count as equal: what its samples differ in is not known yet.
        if a == b:
            return 0.0
        key = (min(a, b), max(a, b))
        if key not in self._pairs:
            both = zip(self._texts[a], self._texts[b], strict=True)
            self._pairs[key] = fmean(self._metric(texts) for texts in both)
        return self._pairs[key]
