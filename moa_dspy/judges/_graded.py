"""What the judges that grade one system at a time share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from moa_dspy.judges._as_metric import Metric, Scored, metric_of, reference_in
from moa_dspy.judges._outcome import Exclusion, Graded, Judgement
from moa_dspy.judges._program import JudgeProgram, Reply
from moa_dspy.judges._verdict import read_number
from moa_dspy.winrate import preferences

_EQUAL = 1e-9


class Grader(JudgeProgram):
    """Grades one system's answer to an example from 1 to ``best``; two grades make a preference."""

    best: int

    def grade(self, example: dspy.Example, answer: Any) -> Graded:
        """Grade an answer; the result is counted by the report.

        Args:
            example: What was asked.
            answer: A prediction, a text, or a sequence of texts, one per turn; None is missing.
        """
        graded = self.graded(example, answer)
        self.count(graded)
        return graded

    def graded(self, example: dspy.Example, answer: Any) -> Graded:
        """``grade`` uncounted: what a subclass says."""
        raise NotImplementedError

    def compare(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        """Compare two answers by their scores: 1 win, 0.5 tie, 0 loss; counted as one.

        Excluded if either has no score, for its reason.
        """
        ours, theirs = self.graded(example, candidate), self.graded(example, reference)
        judgement = _compared(ours, theirs)
        self.count(judgement)
        return judgement

    def as_metric(
        self, *, reference_field: str | None = None, unreadable: float | None = 0.5
    ) -> Metric:
        """Return a DSPy metric.

        Args:
            reference_field: Field of a stored response to compare with; None scores the
                prediction alone: its mean grade, 1 to ``best`` scaled to [0, 1].
            unreadable: Score of an example that cannot be graded; None raises MetricError.
        """

        def score(example: dspy.Example, prediction: Any) -> Scored:
            if reference_field is None:
                graded = self.grade(example, prediction)
                return graded.score, graded
            stored = reference_in(example, reference_field)
            judgement = self.compare(example, prediction, stored)
            return judgement.preference, judgement

        return metric_of(score, unreadable=unreadable)

    def read_grade(self, reply: Reply, name: str) -> tuple[float | None, Exclusion | None, str]:
        """Return the number in a reply's output ``name``, or why there is none, and a reason."""
        said = str(reply.values.get(name, ""))
        number = read_number(said, best=self.best)
        if number is not None:
            return number, None, reply.reason
        if reply.excluded is not None:
            return None, reply.excluded, reply.reason
        return None, "unparsable", f"{said[:80]!r} is no number from 1 to {self.best}."

    def sum_up(self, pieces: Mapping[str, dspy.Prediction]) -> Graded:
        """Combine the predictions per turn or skill, each with ``grade``, ``excluded``, ``reason``.

        The score is the mean over all of them; one without a grade leaves the example without.
        """
        grades: dict[str, float | None] = {name: piece.grade for name, piece in pieces.items()}
        reason = "\n".join(f"{n}: {piece.reason}" for n, piece in pieces.items() if piece.reason)
        for piece in pieces.values():
            if piece.excluded is not None:
                return Graded(grades=grades, excluded=piece.excluded, reason=reason)
        read: Sequence[float] = [piece.grade for piece in pieces.values()]
        score = (sum(read) / len(read) - 1) / (self.best - 1)
        return Graded(grades=grades, score=score, reason=reason)


def _compared(ours: Graded, theirs: Graded) -> Judgement:
    for graded in (ours, theirs):
        if graded.score is None:
            return Judgement(excluded=graded.excluded, reason=graded.reason)
    # Scores are means of few numbers; what rounding makes of equal ones is a tie.
    preference = preferences([ours.score or 0.0], [theirs.score or 0.0], tolerance=_EQUAL)[0]
    return Judgement(preference=float(preference), reason=ours.reason)
