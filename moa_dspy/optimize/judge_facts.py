"""Facts about judges and rankers of a study: how far these can be trusted, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import StudyError
from moa_dspy.winrate.intervals import Interval, points
from moa_dspy.winrate.preferences import (
    consistency_p,
    judge_agreement,
    length_correlation,
    position_consistency,
)

FEWEST_JUDGED: Final = 8
"""Judgements below which no diagnostic is computed: its interval would say nothing."""
CHANCE: Final = 0.05
"""Level of the test that a judge can tell two responses apart."""
LARGE_ADVANTAGE: Final = 0.1
"""Advantage of the first place, as a share of a win, from which the report warns."""
LARGE_CORRELATION: Final = 0.3
"""Rank correlation of preference and length from which the report warns."""
MOST_SHOWN: Final = 200
"""Characters of an answer that an error shows."""
N_SHOWN: Final = 3
"""Replies that an error shows."""


class PairVerdict(Protocol):
    """The fields of ``moa_dspy.judges.Judgement`` that are read here."""

    @property
    def excluded(self) -> str | None:
        """The reason why there is no preference."""
        ...

    @property
    def preference(self) -> float | None:
        """In [0, 1]; 1 where the first response is preferred."""
        ...

    @property
    def verdicts(self) -> tuple[float, ...]:
        """Per order; of two, the first is of the order that showed the first response second."""
        ...

    @property
    def is_tie(self) -> bool:
        """True if no response is preferred."""
        ...

    @property
    def is_inconsistent(self) -> bool:
        """True if the orders prefer different responses."""
        ...


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A judgement of two different responses, with their lengths in characters."""

    judgement: PairVerdict
    length: int
    other_length: int


@dataclass(frozen=True, slots=True)
class JudgeDiagnostics:
    """Properties of a judge's verdicts on pairs of different responses, each pair counted once.

    Attributes:
        n: Pairs.
        judged: Pairs with a verdict; the others are in the next three.
        missing: Pairs without a recorded verdict.
        failed: Pairs on which the judge's model did not answer.
        unparsable: Pairs on which its reply was no verdict.
        ties: Share of judged pairs on which it preferred none, in [0, 1].
        inconsistent: Judged pairs on which the two orders preferred different responses.
        consistency: Share of pairs with one verdict in both orders; None if asked in one order.
        first_advantage: Preference for a response when shown first minus when shown second.
        length: Rank correlation of preference and how much longer a response is; None where
            there are few pairs, or nothing varies.
        p_chance: Of ``consistency``, against a judge that only looks at places; None as there.
    """

    n: int = 0
    judged: int = 0
    missing: int = 0
    failed: int = 0
    unparsable: int = 0
    ties: float = 0.0
    inconsistent: int = 0
    consistency: Interval | None = None
    first_advantage: Interval | None = None
    length: Interval | None = None
    p_chance: float | None = None

    @property
    def chance(self) -> str | None:
        """Why the verdicts may be chance, in numbers; None where nothing says so."""
        if self.p_chance is None or self.consistency is None or self.p_chance <= CHANCE:
            return None
        return (
            f"with the places swapped, it gives the same verdict on {self.consistency.percent} of "
            f"{self.judged:,} pairs, not shown to be more than chance (p = {self.p_chance:.3f})."
        )

    @classmethod
    def of(cls, pairs: Sequence[JudgedPair]) -> JudgeDiagnostics:
        """Return the properties of these judgements."""
        read = [one for one in pairs if one.judgement.preference is not None]
        excluded = [one.judgement.excluded for one in pairs]
        places = [one.judgement.verdicts for one in read if len(one.judgement.verdicts) == 2]
        found = cls(
            n=len(pairs),
            judged=len(read),
            missing=excluded.count("missing"),
            failed=excluded.count("failed"),
            unparsable=excluded.count("unparsable"),
            ties=sum(one.judgement.is_tie for one in read) / len(read) if read else 0.0,
            inconsistent=sum(one.judgement.is_inconsistent for one in read),
            length=_length(read),
        )
        if len(places) < FEWEST_JUDGED:
            return found
        # Shown first is the second order of each: see ``PairVerdict.verdicts``.
        first, second = [two for _, two in places], [one for one, _ in places]
        reaction = position_consistency(first, second)
        return replace(
            found,
            consistency=reaction.consistent,
            first_advantage=reaction.first_advantage,
            p_chance=consistency_p(first, second),
        )


def _length(read: Sequence[JudgedPair]) -> Interval | None:
    values = [one.judgement.preference or 0.0 for one in read]
    lengths, others = [one.length for one in read], [one.other_length for one in read]
    gaps: NDArray[np.float64] = np.subtract(lengths, others, dtype=np.float64)
    if len(read) < FEWEST_JUDGED or np.ptp(values) == 0 or np.ptp(gaps) == 0:
        return None
    return length_correlation(values, lengths, others)


@dataclass(frozen=True, slots=True)
class JudgedSystem:
    """The scores of one system on one split, by the judge and by a metric beside it.

    Attributes:
        win_rate: Mean preference over the reference, in [0, 1]; None without a verdict.
        length_controlled: The same at equal lengths; None where it was not computed.
        metric: Mean of the metric, where the study has one beside the judge.
        n: Rows with a verdict.
        excluded: Rows without.
    """

    win_rate: float | None
    length_controlled: float | None
    metric: float | None
    n: int
    excluded: int


@dataclass(frozen=True, slots=True)
class DirectComparison:
    """The pick against the best single agent, judged directly on the test rows.

    Attributes:
        win_rate: Mean preference for the pick, in [0, 1].
        n: Rows with a verdict.
        excluded: Rows without: they count for neither.
    """

    win_rate: float
    n: int
    excluded: int

    @classmethod
    def of(cls, preferences: Sequence[float], *, n_rows: int) -> DirectComparison:
        """Sum up the preferences, of which there is one at least."""
        n = len(preferences)
        return cls(sum(preferences) / n, n, n_rows - n)


@dataclass(frozen=True, slots=True)
class JudgeFacts:
    """Everything that a report says of the judge.

    Attributes:
        judge: Kind and agents, for people.
        picks: Whether the ``judge`` or the ``metric`` decides; both are measured.
        reference: The system that every other one is compared with.
        chosen: How the reference was chosen.
        is_length_controlled: Whether the score is the win rate at equal lengths.
        diagnostics: Of all that was judged.
        second: Name of a second judge; None without.
        agreement: Share of a sample on which both judges gave the same verdict.
        kappa: Cohen's, of the same sample; None where chance explains everything.
        warnings: Why the verdicts may be wrong, in sentences.
        unread: Up to three replies that were no verdict.
        costs: Of the judges' calls by agent: ``calls``, ``tokens``, ``usd``, in production terms.
        systems: By split and name of the row.
        direct: What the verdict is based on; None where the pick is a single agent.
        follows: By architecture, how far its answer follows the better proposals: mean rank
            correlation over rows, its standard error, and the number of rows.
    """

    judge: str
    picks: str
    reference: str
    chosen: str
    is_length_controlled: bool
    diagnostics: JudgeDiagnostics
    second: str | None = None
    agreement: Interval | None = None
    kappa: Interval | None = None
    warnings: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    systems: Mapping[str, Mapping[str, JudgedSystem]] = field(default_factory=dict)
    direct: DirectComparison | None = None
    follows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def calls(self) -> float:
        """Calls of all judges."""
        return sum(one["calls"] for one in self.costs.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> JudgeFacts:
        """Return the facts whose ``to_json`` was ``content``."""
        plain = dict(content)
        found = dict(plain.pop("diagnostics"))
        for name in ("consistency", "first_advantage", "length"):
            found[name] = _interval(found[name])
        for name in ("agreement", "kappa"):
            plain[name] = _interval(plain[name])
        direct = plain.pop("direct")
        systems = {
            split: {name: JudgedSystem(**one) for name, one in rows.items()}
            for split, rows in plain.pop("systems").items()
        }
        return cls(
            diagnostics=JudgeDiagnostics(**found),
            direct=None if direct is None else DirectComparison(**direct),
            systems=systems,
            warnings=tuple(plain.pop("warnings")),
            unread=tuple(plain.pop("unread")),
            **plain,
        )


def _interval(content: Mapping[str, Any] | None) -> Interval | None:
    return None if content is None else Interval(**content)


def agreement_of(
    verdicts: Sequence[float], second: Sequence[float]
) -> tuple[Interval | None, Interval | None]:
    """Return the share of equal verdicts of two judges, and kappa; None with too few pairs."""
    if len(verdicts) < FEWEST_JUDGED:
        return None, None
    found = judge_agreement(verdicts, second)
    return found.raw, found.kappa


def trust_warnings(found: JudgeDiagnostics) -> Iterator[str]:
    """Yield what the diagnostics say against the judge, a sentence each."""
    first = found.first_advantage
    if found.chance is not None:
        yield f"Its verdicts may be chance: {found.chance}"
    if first is not None and abs(first.estimate) >= LARGE_ADVANTAGE and not _holds_0(first):
        place = "first" if first.estimate > 0 else "second"
        yield (
            f"It prefers what it is shown {place}, by {points(abs(first.estimate))} points; "
            "asked in both orders, that makes ties and no winner."
        )
    length = found.length
    if length is not None and abs(length.estimate) >= LARGE_CORRELATION and not _holds_0(length):
        which = "longer" if length.estimate > 0 else "shorter"
        yield (
            f"It prefers {which} responses: rank correlation with length {length.estimate:+.2f} "
            f"[{length.low:+.2f}, {length.high:+.2f}]. Compare the length-controlled win rate."
        )


def _holds_0(interval: Interval) -> bool:
    return interval.low <= 0 <= interval.high


@dataclass(slots=True)
class Choices:
    """Replies of one ranker, or of one judge of a knockout.

    Attributes:
        n_asked: All of them.
        n_unread: Those that name no single response.
        unread: The first of these.
    """

    n_asked: int = 0
    n_unread: int = 0
    unread: list[str] = field(default_factory=list)

    def note(self, unread: str | None) -> None:
        """Count one reply: None was read."""
        self.n_asked += 1
        if unread is not None:
            self.n_unread += 1
            self.unread = [*self.unread, unread][:N_SHOWN]


def check_readable(
    who: str, *, n_asked: int, n_unread: int, replies: Sequence[str], most: float = 1.0
) -> None:
    """Stop a study in which too few replies of a ranker or a judge could be read.

    Args:
        who: The ranker or judge, with its agent.
        n_asked: Replies.
        n_unread: Replies in which no choice was found.
        replies: Some of these; three are shown.
        most: Share of unread replies from which on the study stops.

    Raises:
        StudyError: It was asked, and that many of its replies could not be read.
    """
    if not n_asked or n_unread < most * n_asked:
        return
    some = f"{n_unread:,} of {n_asked:,} replies of {who} could not be read"
    none = f"None of the {n_asked:,} replies of {who} could be read"
    shown = "; ".join(map(shown_reply, replies[:N_SHOWN]))
    raise StudyError(
        f"{none if n_unread >= n_asked else some}, so what it chose is not known. Does it "
        "answer in the format that it is asked for, and does `max_tokens` leave it room? It "
        f"replied {shown}."
    )


def shown_reply(text: str) -> str:
    """Return a reply as an error shows it."""
    plain = " ".join(text.split())
    return repr(plain if len(plain) <= MOST_SHOWN else plain[: MOST_SHOWN - 1] + "…")
