from __future__ import annotations

from itertools import product

import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.selection import canonical_evidence
from moa_dspy.prediction import Response


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("a + b > vote", "a + b > vote(b)"),
        ("a + b + c + d > vote(d)", "a + b + c + d > vote(c)"),
        ("a + b + c + d + e > vote", "a + b + c + d + e > vote(e; order=c)"),
        ("a*2 + b*2 > vote", "a*2 + b*2 > vote(b)"),
        ("a + b > synthesize(a)", "a + b > synthesize(a)"),
        ("a", "a"),
    ],
)
def test_the_best_voters_decide_ties_and_no_more_are_named_than_can_matter(
    text: str, final: str
) -> None:
    assert str(canonical_evidence(Architecture.parse(text), "ecdba")) == final


def test_a_settled_vote_is_the_vote_in_which_the_best_of_all_tied_members_wins() -> None:
    # Every way in which five can answer: who stands first in the ranking among the tied wins.
    from moa_dspy.aggregators import NORMALISERS, Vote

    architecture, ranking = (
        canonical_evidence(Architecture.parse("a + b + c + d + e > vote"), "debca"),
        "debca",
    )
    names = architecture.layers[-1]
    vote = Vote(("answer",), NORMALISERS["text"], architecture.aggregator)
    for texts in product("vwxyz", repeat=5):
        responses = {
            n: Response(n, values={"answer": t}, text=t) for n, t in zip(names, texts, strict=True)
        }
        read = [responses[names[seat]] for seat in architecture.reading]
        with pytest.raises(StopIteration) as stop:
            next(vote({}, read))
        most = max(texts.count(text) for text in texts)
        best = next(n for n in ranking if texts.count(responses[n].text) == most)
        assert stop.value.value.text == responses[best].text
