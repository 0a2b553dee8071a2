"""Facts about judges and rankers of a study: their reliability and their costs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import StudyError
from moa_dspy.judges.base import Judgement
from moa_dspy.winrate.intervals import Interval, points
from moa_dspy.winrate.preferences import (
    consistency_p,
    judge_agreement,
    length_correlation,
    position_consistency,
)

FEWEST_JUDGED: Final = 8
"""Judgements below which no diagnostic is computed: its interval would be uninformative."""
CHANCE: Final = 0.05
"""Significance level of the test that a judge distinguishes two responses better than chance."""
LARGE_ADVANTAGE: Final = 0.1
"""Advantage of the first position, as a share of a win, from which the report warns."""
LARGE_CORRELATION: Final = 0.3
"""Rank correlation of preference and length from which the report warns."""
MOST_SHOWN: Final = 200
"""Characters of an answer shown in an error message."""
N_SHOWN: Final = 3
"""Number of replies shown in an error message."""


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A judgement of two different responses, with their lengths in characters."""

    judgement: Judgement
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
        ties: Share of judged pairs on which it preferred neither response, in [0, 1].
        inconsistent: Judged pairs on which different responses were preferred in the two orders.
        consistency: Share of pairs with one verdict in both orders; None if asked in one order.
        first_advantage: Preference for a response when shown first minus when shown second.
        length: Rank correlation of the preference and the difference in length; None if there
            are few pairs, or one of the two is constant.
        p_chance: P-value of ``consistency`` for a judge that uses position only, or None likewise.
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
        """Evidence that the verdicts may be chance, in numbers; None if there is none."""
        if self.p_chance is None or self.consistency is None or self.p_chance <= CHANCE:
            return None
        return (
            f"with the places swapped, it gives the same verdict on {self.consistency.percent} of "
            f"{self.judged:,} pairs, not shown to be more than chance (p = {self.p_chance:.3f})."
        )

    @classmethod
    def of(cls, pairs: Sequence[JudgedPair]) -> JudgeDiagnostics:
        """Return the properties of these judgements."""
        read = [pair for pair in pairs if pair.judgement.preference is not None]
        excluded = [pair.judgement.excluded for pair in pairs]
        places = [pair.judgement.verdicts for pair in read if len(pair.judgement.verdicts) == 2]
        diagnostics = cls(
            n=len(pairs),
            judged=len(read),
            missing=excluded.count("missing"),
            failed=excluded.count("failed"),
            unparsable=excluded.count("unparsable"),
            ties=sum(pair.judgement.is_tie for pair in read) / len(read) if read else 0.0,
            inconsistent=sum(pair.judgement.is_inconsistent for pair in read),
            length=_length(read),
        )
        if len(places) < FEWEST_JUDGED:
            return diagnostics
        # The first response is shown first in the second order: see ``Judgement.verdicts``.
        first, second = [verdict for _, verdict in places], [verdict for verdict, _ in places]
        reaction = position_consistency(first, second)
        return replace(
            diagnostics,
            consistency=reaction.consistent,
            first_advantage=reaction.first_advantage,
            p_chance=consistency_p(first, second),
        )


def _length(read: Sequence[JudgedPair]) -> Interval | None:
    values = [pair.judgement.preference or 0.0 for pair in read]
    lengths, others = [pair.length for pair in read], [pair.other_length for pair in read]
    gaps: NDArray[np.float64] = np.subtract(lengths, others, dtype=np.float64)
    if len(read) < FEWEST_JUDGED or np.ptp(values) == 0 or np.ptp(gaps) == 0:
        return None
    return length_correlation(values, lengths, others)


@dataclass(frozen=True, slots=True)
class JudgedSystem:
    """The scores of one system on one split, by the judge and by a metric beside it.

    Attributes:
        win_rate: Mean preference over the reference, in [0, 1]; None without a verdict.
        length_controlled: The same at equal lengths; None if it was not computed.
        metric: Mean of the metric, if the study has one beside the judge.
        n: Rows with a verdict.
        excluded: Rows without a verdict.
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
        excluded: Rows without a verdict, which count for neither system.
    """

    win_rate: float
    n: int
    excluded: int

    @classmethod
    def of(cls, preferences: Sequence[float], *, n_rows: int) -> DirectComparison:
        """Summarise the preferences, of which there must be at least one."""
        n = len(preferences)
        return cls(sum(preferences) / n, n, n_rows - n)


@dataclass(frozen=True, slots=True)
class JudgeFacts:
    """The facts about the judge that a report has.

    Attributes:
        judge: Kind and agents, in readable form.
        picks: Whether the ``judge`` or the ``metric`` picks; both are measured.
        reference: The system with which all others are compared.
        chosen: How the reference was chosen.
        is_length_controlled: Whether the score is the win rate at equal lengths.
        diagnostics: Diagnostics of all judgements.
        second: Name of a second judge; None without one.
        agreement: Share of a sample on which both judges gave the same verdict.
        kappa: Cohen's kappa on the same sample; None if the agreement by chance is 1.
        warnings: Why the verdicts may be wrong, in sentences.
        unread: Up to three replies that were no verdict.
        costs: Costs of the judges by agent: ``calls``, ``tokens``, ``usd``, as if none were stored.
        systems: Scores by split and name of the system.
        direct: Comparison on which the verdict is based; None if the pick is a single agent.
        follows: Per architecture, how far its answer follows the better proposals: mean rank
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
        return sum(costs["calls"] for costs in self.costs.values())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> JudgeFacts:
        """Return the facts whose ``to_json`` was ``content``."""
        plain = dict(content)
        diagnostics = dict(plain.pop("diagnostics"))
        for name in ("consistency", "first_advantage", "length"):
            diagnostics[name] = _interval(diagnostics[name])
        for name in ("agreement", "kappa"):
            plain[name] = _interval(plain[name])
        direct = plain.pop("direct")
        systems = {
            split: {name: JudgedSystem(**system) for name, system in rows.items()}
            for split, rows in plain.pop("systems").items()
        }
        return cls(
            diagnostics=JudgeDiagnostics(**diagnostics),
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
    agreement = judge_agreement(verdicts, second)
    return agreement.raw, agreement.kappa


def trust_warnings(diagnostics: JudgeDiagnostics) -> Iterator[str]:
    """Yield a warning, one sentence, for each diagnostic that speaks against the judge."""
    first = diagnostics.first_advantage
    if diagnostics.chance is not None:
        yield f"Its verdicts may be chance: {diagnostics.chance}"
    if first is not None and abs(first.estimate) >= LARGE_ADVANTAGE and not _holds_0(first):
        place = "first" if first.estimate > 0 else "second"
        yield (
            f"It prefers what it is shown {place}, by {points(abs(first.estimate))} points; "
            "asked in both orders, that makes ties and no winner."
        )
    length = diagnostics.length
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
        n_asked: Number of replies.
        n_unread: Number of replies that do not name exactly one response.
        unread: The first of these replies.
    """

    n_asked: int = 0
    n_unread: int = 0
    unread: list[str] = field(default_factory=list)

    def note(self, unread: str | None) -> None:
        """Count one reply; ``unread`` is its text if it could not be read, else None."""
        self.n_asked += 1
        if unread is not None:
            self.n_unread += 1
            self.unread = [*self.unread, unread][:N_SHOWN]


def check_readable(
    subject: str, *, n_asked: int, n_unread: int, replies: Sequence[str], most: float = 1.0
) -> None:
    """Stop a study in which too few replies of a ranker or a judge could be read.

    Args:
        subject: The ranker or judge, with its agent.
        n_asked: Number of replies.
        n_unread: Number of replies in which no choice was found.
        replies: Some of these; three are shown.
        most: Share of unread replies from which the study stops.

    Raises:
        StudyError: If there are replies, and at least this share of them could not be read.
    """
    if not n_asked or n_unread < most * n_asked:
        return
    some = f"{n_unread:,} of {n_asked:,} replies of {subject} could not be read"
    none = f"None of the {n_asked:,} replies of {subject} could be read"
    shown = "; ".join(map(shown_reply, replies[:N_SHOWN]))
    raise StudyError(
        f"{none if n_unread >= n_asked else some}, so what it chose is not known. Does it "
        "answer in the format that it is asked for, and does `max_tokens` leave it room? It "
        f"replied {shown}."
    )


def shown_reply(text: str) -> str:
    """Return a reply as shown in an error message."""
    plain = " ".join(text.split())
    return repr(plain if len(plain) <= MOST_SHOWN else plain[: MOST_SHOWN - 1] + "…")


def members_of(judge: Any) -> tuple[Any, ...]:
    """Return a jury's judges, or the judge alone."""
    return tuple(getattr(judge, "judges", (judge,)))


def self_preference_warnings(
    judge: Any, pool: Mapping[str, Any], agents: Sequence[str]
) -> list[str]:
    """Return a warning for each judging model that also answers, or whose model family does."""
    warnings = []
    for member in members_of(judge):
        own, name = getattr(member, "pool", None), getattr(member, "agent", None)
        if own is None or name is None:
            continue
        model = own[name].model
        same = [a for a in agents if pool[a].model == model]
        kin = [a for a in agents if a not in same and _family(pool[a].model) == _family(model)]
        if same:
            warnings.append(
                f"Judge {name} ({model}) also answers, as {', '.join(same)}: a model tends to "
                "prefer its own answers. Take a judge from outside the pool."
            )
        elif kin:
            warnings.append(
                f"Judge {name} ({model}) is of the family of {', '.join(kin)}: models tend to "
                "prefer answers of their own family."
            )
    return warnings


def _family(model: str) -> str:
    words = re.match(r"[a-z]+", model.rpartition("/")[2].lower())
    return words[0] if words else model.lower()
