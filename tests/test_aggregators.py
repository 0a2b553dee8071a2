from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from moa_dspy.aggregators import (
    NORMALISERS,
    Combine,
    Consensus,
    Question,
    Rank,
    Synthesize,
    Vote,
    node_name,
)
from moa_dspy.architecture import Architecture
from moa_dspy.prediction import Response
from moa_dspy.references import Cut

INPUTS = {"question": "France?"}


def responses(*texts: str) -> list[Response]:
    """One response per text, of the agents a, b, c ..."""
    return [
        Response(agent, values={"answer": text}, text=text)
        for agent, text in zip("abcdefgh", texts, strict=False)
    ]


def run(
    combine: Combine, given: Sequence[Response], reply: Response | None = None
) -> tuple[Response, list[Question]]:
    """Run the last step; whoever is asked gives ``reply``."""
    asked: list[Question] = []
    steps = combine(INPUTS, given)
    try:
        questions = next(steps)
        while True:
            asked += questions
            assert reply is not None, "nobody was to be asked"
            questions = steps.send([reply] * len(questions))
    except StopIteration as stop:
        final: Response = stop.value
        return final, asked


def guard(texts: Sequence[str]) -> list[str]:
    return [f"guarded {text}" for text in texts]


CUTS = (Cut(1, "a", 9, 3),)


def read(
    agent: str, module: Any, inputs: Mapping[str, Any], responses: Sequence[Response]
) -> tuple[dict[str, Any], tuple[Cut, ...]]:
    assert agent == "z"
    return {**inputs, "references": guard([response.text for response in responses])}, CUTS


def vote(tie_breaker: str | None = None, normalise: str = "text") -> Vote:
    return Vote(("answer",), NORMALISERS[normalise], tie_breaker)


COMBINES: dict[str, Combine] = {
    "a > vote": vote(),
    "a + b > vote(b)": vote("b"),
    "a > select": Consensus(),
    "a > select(z)": Rank("z", "module", ("p",), read),
    "a > synthesize(z)": Synthesize("z", "module", ("p",), read),
}
REPLY = Response("z", values={"answer": "new", "best": "2"}, text="new")


@pytest.mark.parametrize("notation", COMBINES)
@pytest.mark.parametrize(
    "texts", [["one"], ["one", "two"], ["one", "two", "two"], ["", "", ""], ["!", "?", "!"]]
)
def test_the_result_is_a_response_verbatim_or_the_aggregators_after_the_promised_calls(
    notation: str, texts: list[str]
) -> None:
    architecture, given = Architecture.parse(notation), responses(*texts)
    final, asked = run(COMBINES[notation], given, REPLY)
    is_written = architecture.combine == "synthesize"
    assert final is REPLY if is_written else any(final is response for response in given)
    assert len(asked) == int(architecture.aggregator_calls_a_model)
    for question in asked:
        assert (question.agent, question.sample, question.module) == ("z", 0, "module")
        assert question.inputs == {**INPUTS, "references": guard(texts)}
        assert (question.cuts, question.is_final) == (CUTS, is_written)
        assert question.node == node_name(architecture.combine, "z", parents=("p",))


@pytest.mark.parametrize(
    ("texts", "tie_breaker", "winner"),
    [
        (["x", "y", "y"], None, "b"),  # two against one; b is the first of the two
        (["x", "y", "y"], "a", "b"),  # a majority needs no tie-breaker
        (["x", "y"], None, "a"),  # one against one: the first
        (["x", "y"], "b", "b"),
        (["x", "y", "z"], "c", "c"),
        (["x", "x", "y", "y", "z"], "e", "a"),  # e is not among the tied
        (["x", "x", "y", "y", "z"], "d", "d"),
        (["X ", "y", " x"], None, "a"),  # equal after normalising, returned as it was
    ],
)
def test_a_vote_goes_to_the_most_frequent_answer_and_ties_by_the_stated_rule(
    texts: list[str], tie_breaker: str | None, winner: str
) -> None:
    final, _ = run(vote(tie_breaker), responses(*texts))
    assert final.agent == winner


def test_a_vote_counts_all_fields_of_the_signature_and_nothing_else() -> None:
    def ballot(agent: str, **values: Any) -> Response:
        return Response(agent, values=values, text="any")

    given = [
        ballot("a", city="Rome", river="Tiber", reasoning="I recall"),
        ballot("b", city="Rome", river="Po", reasoning="I guess"),
        ballot("c", city="Rome", river="Po", reasoning="I know"),
    ]
    both = Vote(("city", "river"), NORMALISERS["text"])
    assert run(both, given)[0].agent == "b"
    # By city alone all three agree, and the first is returned.
    assert run(Vote(("city",), NORMALISERS["text"]), given)[0].agent == "a"


@pytest.mark.parametrize(
    ("best", "winner"),
    [
        ("2", "b"),
        ("The best is 3.", "c"),
        (" 1\n", "a"),
        # No opinion: consensus decides. b and c share a word, so b is the first most alike.
        ("", "b"),
        ("none of them", "b"),
        ("0", "b"),
        ("4", "b"),
        ("99999999999999999999", "b"),
    ],
)
def test_a_ranker_chooses_by_number_and_without_one_consensus_does(best: str, winner: str) -> None:
    ranker = Rank("z", None, (), read)
    given = responses("left", "right way", "right turn")
    final, _ = run(ranker, given, Response("z", values={"best": best}, text=best))
    assert final.agent == winner


def test_a_ranker_that_failed_has_no_opinion() -> None:
    ranker = Rank("z", None, (), read)
    final, asked = run(ranker, responses("x", "y", "y"), Response("z", failure="down"))
    assert (final.agent, len(asked)) == ("b", 1)


def test_an_aggregator_that_failed_says_so() -> None:
    failed = Response("z", failure="down")
    assert run(Synthesize("z", None, (), read), responses("x"), failed)[0] is failed


@pytest.mark.parametrize(
    ("texts", "winner"),
    [
        # Words shared / words of both, summed over the others.
        # a-b 1/3, a-c 0, b-c 1/3: b has 2/3
        (["red apple", "red pear", "green pear"], "b"),
        (["x", "y", "z"], "a"),  # nobody is like anybody: the first
        (["", "", "x"], "a"),  # two without words are alike
        (["The Cat!", "a dog", "the cat"], "a"),  # case and marks do not count
    ],
)
def test_consensus_is_the_response_most_like_the_others(texts: list[str], winner: str) -> None:
    assert run(Consensus(), responses(*texts))[0].agent == winner


def test_a_node_is_named_by_all_that_it_depends_on() -> None:
    first = node_name("propose", "a")
    names = [
        first,
        node_name("propose", "b"),
        node_name("select", "a"),
        node_name("propose", "a", 1),
        node_name("propose", "a", parents=(first,)),
        node_name("propose", "a", parents=(first, first)),
        node_name("propose", "a", parents=(node_name("propose", "a", parents=(first,)),)),
    ]
    assert len(set(names)) == len(names)
    assert node_name("propose", "a") == first


@pytest.mark.parametrize(
    ("name", "left", "right", "is_equal"),
    [
        ("text", " The  Cat\n", "the cat", True),
        ("text", "the cat", "the cat.", False),
        ("answer", "So the answer is **42.0**", "42", True),
        ("answer", "42", "43", False),
    ],
)
def test_a_normaliser_says_when_two_answers_are_equal(
    name: str, left: str, right: str, is_equal: bool
) -> None:
    normalise = NORMALISERS[name]
    assert (normalise(left) == normalise(right)) is is_equal
    assert normalise(normalise(left)) == normalise(left)
