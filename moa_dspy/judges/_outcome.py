"""What a judge said about one example, and the counts of many such outcomes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

Exclusion: TypeAlias = Literal["missing", "failed", "unparsable"]
"""Why an example has no number: no response or record to judge; the judge's model did not answer;
its answer was not a verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What every judge says about an example: either a number, or why there is none."""

    excluded: Exclusion | None = None
    reason: str = ""
    """The judge's own reasoning where it gives any, or what is wrong; for people and optimizers."""
    n_sampled: int = 0
    """Verdicts taken as they were sampled although log-probabilities were asked for."""

    @property
    def is_tie(self) -> bool:
        """Whether the judge saw no difference."""
        return False

    @property
    def is_inconsistent(self) -> bool:
        """Whether the two orders of one pair preferred different systems."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(Outcome):
    """A preference between two systems on one example.

    Attributes:
        preference: In [0, 1], 1 if the candidate is preferred; None where ``excluded`` says why.
        verdicts: The preference for the candidate in each order that was asked; of two, the first
            is from the order in which the candidate was shown second.
    """

    preference: float | None = None
    verdicts: tuple[float, ...] = ()

    @property
    def is_tie(self) -> bool:
        """Whether neither is preferred, by the same word in every order."""
        return self.preference == 0.5 and not self.is_inconsistent

    @property
    def is_inconsistent(self) -> bool:
        """Whether the two orders of one pair preferred different systems."""
        return bool(self.verdicts) and min(self.verdicts) < 0.5 < max(self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded(Outcome):
    """The grades of one system on one example.

    Attributes:
        grades: Per turn or skill, on the judge's scale; None where the reply was no grade.
        score: Mean grade, scaled to [0, 1]; None unless every grade is there, because means over
            different turns or skills cannot be compared.
    """

    grades: Mapping[str, float | None]
    score: float | None = None


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """How many examples a judge saw and what became of them; every field counts examples.

    ``n = judged + missing + failed + unparsable``, of which only ``judged`` have a number.
    ``inconsistent``, ``ties`` and ``sampled`` are parts of ``judged``.
    """

    n: int = 0
    judged: int = 0
    missing: int = 0
    failed: int = 0
    unparsable: int = 0
    inconsistent: int = 0
    ties: int = 0
    sampled: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> JudgeReport:
        """Count outcomes."""
        counts: Counter[str] = Counter()
        for outcome in outcomes:
            counts.update(_counted(outcome))
        return cls(**counts)

    def __add__(self, other: JudgeReport) -> JudgeReport:
        names = [field.name for field in fields(self)]
        return JudgeReport(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def excluded(self) -> int:
        """Examples without a number; none of them is scored."""
        return self.missing + self.failed + self.unparsable

    def __str__(self) -> str:
        parts = [f"{name} {getattr(self, name)}" for name in _PARTS if getattr(self, name)]
        return f"{self.judged} of {self.n} judged" + "".join(f", {part}" for part in parts)


_PARTS = ("missing", "failed", "unparsable", "inconsistent", "ties", "sampled")


def _counted(outcome: Outcome) -> list[str]:
    if outcome.excluded is not None:
        return ["n", outcome.excluded]
    claims = {
        "inconsistent": outcome.is_inconsistent,
        "ties": outcome.is_tie,
        "sampled": outcome.n_sampled > 0,
    }
    return ["n", "judged", *(name for name, holds in claims.items() if holds)]


class Tally:
    """Counts outcomes as they come; shared by the copies of a judge and safe for threads."""

    def __init__(self) -> None:
        self._report = JudgeReport()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tally:
        # DSPy's optimizers judge with copies, whose exclusions must not go unseen.
        return self

    def __reduce__(self) -> tuple[type[Tally], tuple[()]]:
        return Tally, ()

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        with self._lock:
            self._report += JudgeReport.of([outcome])

    @property
    def report(self) -> JudgeReport:
        """The counts up to now."""
        with self._lock:
            return self._report
