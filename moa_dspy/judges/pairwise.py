"""A judge that compares two responses, and the strict parser of its verdicts.

A reply that is not clearly a verdict does not count as a verdict.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import dspy

from moa_dspy.adapters import quoted
from moa_dspy.errors import MetricError
from moa_dspy.judges.base import (
    Judgement,
    Metric,
    answer_text,
    instruction_of,
    preference_metric,
)
from moa_dspy.judges.program import JudgeProgram, choice
from moa_dspy.pool import Pool

FIRST: Final[str] = "1"
SECOND: Final[str] = "2"
NEITHER: Final[str] = "0"

_DECORATION: Final = " \t\r\n*_`\"'[](){}<>#.,:;!="
_LEAD: Final = (
    r"(?:(?:the |my |final )*(?:verdict|winner|better|best|rating|grade|score|answer)"
    r"(?: (?:response|answer|one))?(?: is)?[\s:=*_`\"'\[(]*)?"
)
_VERDICT: Final = re.compile(
    _LEAD + r"(?:(?:response|answer|output)[\s_]*)?(?P<verdict>[012]|tie)(?: is better)?",
    re.IGNORECASE,
)
_NUMBER: Final = re.compile(
    _LEAD + r"(?P<number>[0-9]{1,2}(?:\.[0-9]+)?)(?:[*_\])]*\s*(?:/|out of)\s*(?P<best>10|5))?",
    re.IGNORECASE,
)


def read_verdict(text: str, *, allows_ties: bool) -> str | None:
    """Return ``1``, ``2`` or ``0`` (neither) if the text is only that verdict, else None.

    Quotes, brackets and markdown around it, and words such as "Response 2 is better", are accepted;
    a text with further arguments is not, as it may name both.
    """
    match = _VERDICT.fullmatch(text.strip(_DECORATION))
    if match is None:
        return None
    verdict = NEITHER if match["verdict"].lower() == "tie" else match["verdict"]
    return verdict if allows_ties or verdict != NEITHER else None


def read_number(text: str, *, best: int) -> float | None:
    """Return the number from 1 to ``best`` if the text is only that number, else None.

    "7", "Grade: 7.5" and "**7**/10" are numbers; "-3", "0", "11" and "7 because ..." are not.
    """
    match = _NUMBER.fullmatch(text.strip(_DECORATION))
    if match is None or match["best"] not in (None, str(best)):
        return None
    number = float(match["number"])
    return number if 1 <= number <= best else None


def second_share(logprobs: Any, verdict: str, *, allows_ties: bool) -> float | None:
    """Return the probability that the second response is preferred, among the verdicts alone.

    With P of the alternatives of the token that holds the verdict, ``P(2) / (P(1) + P(2))``, as
    AlpacaEval 2 weights its verdicts (Dubois et al., 2024, arXiv:2404.04475); with ties,
    ``(P(2) + P(0) / 2) / (P(0) + P(1) + P(2))``. A verdict that is not among the alternatives
    counts 0. Spellings that differ in blanks and quotes are added up.

    Args:
        logprobs: Log-probabilities in DSPy's form: tokens under ``content``, each with its
            ``top_logprobs``; None if the endpoint gave none.
        verdict: The verdict read from the whole reply; its last occurrence as a token counts, as
            reasoning before it may name both.
        allows_ties: Whether 0 is a verdict.

    Returns:
        A number in [0, 1]; None if no token holds the verdict or it has no alternatives.
    """
    token = _holder(logprobs, verdict)
    alternatives = getattr(token, "top_logprobs", None) or ()
    if token is None or not alternatives:
        return None
    # By spelling, as the chosen token is usually, but not always, one of the alternatives.
    spelled = {entry.token: _probability(entry.logprob) for entry in (token, *alternatives)}
    allowed = (FIRST, SECOND, NEITHER) if allows_ties else (FIRST, SECOND)
    mass: dict[str, float] = dict.fromkeys((FIRST, SECOND, NEITHER), 0.0)
    for text, probability in spelled.items():
        if (word := _word(text)) in allowed:
            mass[word] += probability
    total = sum(mass.values())
    if not (math.isfinite(total) and total > 0):
        return None
    return (mass[SECOND] + mass[NEITHER] / 2) / total


def _probability(logprob: Any) -> float:
    """Return the probability; for 0, endpoints send null, -Infinity or NaN."""
    is_number = isinstance(logprob, int | float) and not math.isnan(logprob)
    return math.exp(logprob) if is_number else 0.0


def _holder(logprobs: Any, verdict: str) -> Any:
    tokens = getattr(logprobs, "content", None) or ()
    return next((token for token in reversed(tokens) if _word(token.token) == verdict), None)


def _word(token: str) -> str:
    word = token.strip(_DECORATION).lower()
    return NEITHER if word == "tie" else word


Order = Literal["both", "seeded"]

_SHARES = {FIRST: 0.0, NEITHER: 0.5, SECOND: 1.0}


class PairJudge(JudgeProgram):
    """Compares two responses, as in AlpacaEval 2 (Dubois et al., 2024, arXiv:2404.04475).

    If the endpoint gives log-probabilities, the preference is the probability of ``2`` among the
    possible verdicts; otherwise it is the sampled verdict, 0 or 1. Called as a program, it judges
    once, in the given order: ``verdict``, and ``preference`` for response_2.

    Order ``both`` asks twice with swapped places and takes the mean, so that a judge that always
    prefers one place gives 0.5; orders that prefer different systems are counted as inconsistent.
    ``seeded`` asks once, in an order drawn per example id: unbiased over many examples at half the
    price. An example with an unreadable verdict in either order is excluded without another
    attempt, as the other order alone would favour a place. Equal responses are a tie without a
    call.

    Args:
        pool: As for ``JudgeProgram``, like the next two.
        agent: The judge's name in the pool.
        lm: Instead of both.
        order: ``both`` or ``seeded``.
        seed: Seed of ``seeded``.
        allows_ties: Whether the judge may answer that there is no difference.
        criteria: Description of a good response; None takes the judge's own text.
        is_weighted: Whether log-probabilities are requested; use False for an endpoint that refuses
            them, which would be asked twice, and for verdicts in free text.
        module: ``dspy.Predict``, or ``dspy.ChainOfThought`` with a chat adapter.
        adapter: None is plain chat.

    Raises:
        MetricError: If the order is unknown, or ``criteria`` is blank.
        PoolError: As ``JudgeProgram``.
    """

    def __init__(
        self,
        *,
        pool: Pool | None = None,
        agent: str | None = None,
        lm: dspy.LM | None = None,
        order: Order = "both",
        seed: int = 0,
        allows_ties: bool = False,
        criteria: str | None = None,
        is_weighted: bool = True,
        module: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
    ) -> None:
        super().__init__(pool=pool, agent=agent, lm=lm, adapter=adapter)
        if order not in get_args(Order):
            choices = ", ".join(get_args(Order))
            raise MetricError(f"Unknown `order` {order!r}; known ones are {choices}.")
        self.order, self.seed = order, seed
        self.allows_ties, self.is_weighted = allows_ties, is_weighted
        self.choose = module(choice(allows_ties=allows_ties, criteria=criteria))

    def forward(self, instruction: str, response_1: str, response_2: str) -> dspy.Prediction:
        """Judge once, in this order.

        Returns:
            ``verdict`` ("1", "2", "0" or None) and ``preference`` for response_2, in [0, 1] or
            None; ``is_sampled`` if log-probabilities were missing; ``excluded`` and ``reason``.
        """
        texts = {"instruction": instruction, "response_1": response_1, "response_2": response_2}
        guarded = {name: quoted(text) for name, text in texts.items()}
        reply = self.ask(self.choose, guarded, weighted=self.is_weighted)
        verdict_text = str(reply.values.get("verdict", ""))
        verdict = read_verdict(verdict_text, allows_ties=self.allows_ties)
        if verdict is None:
            reason = reply.reason if reply.excluded else f"{verdict_text[:80]!r} is no verdict."
            excluded = reply.excluded or "unparsable"
            return _verdict(None, None, excluded=excluded, reason=reason)
        share = second_share(reply.logprobs, verdict, allows_ties=self.allows_ties)
        is_sampled = self.is_weighted and share is None
        preference = _SHARES[verdict] if share is None else share
        return _verdict(verdict, preference, is_sampled=is_sampled, reason=reply.reason)

    def compare(self, example: dspy.Example, candidate: Any, reference: Any) -> Judgement:
        """Compare two answers to an example, in one order or both.

        Args:
            example: The example; its inputs are the instruction, its ``id`` seeds the order.
            candidate: A prediction or a text; None if there is no answer.
            reference: Like ``candidate``.

        Raises:
            DataError: If the example has no inputs, or an answer has several turns.
            MoaError: As ``ask``.
        """
        judgement = self._compared(
            example, answer_text(candidate, example), answer_text(reference, example)
        )
        self.count(judgement)
        return judgement

    def as_metric(self, *, reference_field: str, unreadable: float | None = 0.5) -> Metric:
        """Return a DSPy metric: the preference over the response stored in ``reference_field``.

        An example without a verdict scores ``unreadable``: by default neither a win nor a loss.
        """
        return preference_metric(self, reference_field, unreadable)

    def _compared(
        self, example: dspy.Example, candidate: str | None, reference: str | None
    ) -> Judgement:
        instruction = instruction_of(example)
        if candidate is None or reference is None:
            absent = "candidate" if candidate is None else "reference"
            return Judgement(excluded="missing", reason=f"The {absent} has no response.")
        if candidate == reference:
            return Judgement(preference=0.5, reason="The responses are equal.")
        places = self._places(str(example.get("id", instruction)))
        judged = []
        for is_first in places:
            judged.append(self._placed(instruction, candidate, reference, is_first))
            if judged[-1].excluded:
                return Judgement(excluded=judged[-1].excluded, reason=judged[-1].reason)
        verdicts = tuple(
            1 - judgement.preference if is_first else judgement.preference
            for judgement, is_first in zip(judged, places, strict=True)
        )
        return Judgement(
            preference=sum(verdicts) / len(verdicts),
            verdicts=verdicts,
            reason="\n".join(judgement.reason for judgement in judged).strip(),
            n_sampled=sum(judgement.is_sampled for judgement in judged),
        )

    def _placed(
        self, instruction: str, candidate: str, reference: str, is_first: bool, /
    ) -> dspy.Prediction:
        pair = (candidate, reference) if is_first else (reference, candidate)
        return self(instruction=instruction, response_1=pair[0], response_2=pair[1])

    def _places(self, example_id: str) -> tuple[bool, ...]:
        """Return for each order to ask whether the candidate is shown first."""
        if self.order == "both":
            return (False, True)
        drawn = hashlib.sha256(f"{self.seed}\x00{example_id}".encode("utf-8", "replace")).digest()
        return (bool(drawn[0] & 1),)


def _verdict(
    verdict: str | None,
    preference: float | None,
    *,
    is_sampled: bool = False,
    excluded: str | None = None,
    reason: str = "",
) -> dspy.Prediction:
    return dspy.Prediction(
        verdict=verdict,
        preference=preference,
        is_sampled=is_sampled,
        excluded=excluded,
        reason=reason,
    )
