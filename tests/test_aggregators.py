from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.adapters import PlainChat
from moa_dspy.aggregators import (
    NORMALISERS,
    Combine,
    Consensus,
    Rank,
    Synthesize,
    Vote,
    ballot_of,
    node_name,
)
from moa_dspy.architecture import Architecture
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.prediction import Question, Response
from moa_dspy.references import Cut
from moa_dspy.testing import scripted_pool

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
    ("fields", "winner"),
    [(("reasoning", "city"), "b"), (("city", "reasoning"), "b"), (("reasoning",), "a")],
)
def test_a_signatures_own_reasoning_counts_only_if_there_is_nothing_else(
    fields: tuple[str, ...], winner: str
) -> None:
    given = [
        Response(agent, values={"city": city, "reasoning": f"{agent} recalls"}, text="any")
        for agent, city in (("a", "Oslo"), ("b", "Rome"), ("c", "Rome"))
    ]
    assert run(Vote(fields, NORMALISERS["text"]), given)[0].agent == winner


@pytest.mark.parametrize(
    ("best", "winner"),
    [
        ("2", "b"),
        ("The best is 3.", "c"),
        (" 1\n", "a"),
        ("**3**", "c"),
        ("[[3]]", "c"),
        ("1 is short and 2 is wrong, so [[3]].", "c"),
        ("3, yes: 3", "c"),
        # No opinion: consensus decides. b and c share a word, so b is the first most alike.
        ("", "b"),
        ("none of them", "b"),
        ("0", "b"),
        ("4", "b"),
        ("1 or 3", "b"),
        ("Response 1 is better than response 3.", "b"),
        ("[[1]] [[3]]", "b"),
        ("3.5", "b"),
        ("-3", "b"),
        ("1/3", "b"),
        ("99999999999999999999", "b"),
    ],
)
def test_a_ranker_chooses_by_number_and_without_one_consensus_does(best: str, winner: str) -> None:
    ranker = Rank("z", None, (), read)
    given = responses("left", "right way", "right turn")
    final, _ = run(ranker, given, Response("z", values={"best": best}, text=best))
    assert final.agent == winner


@pytest.mark.parametrize(("said", "is_undecided"), [("2", False), ("1 or 2", True), ("?", True)])
def test_a_prediction_says_that_its_ranker_had_no_opinion(said: str, is_undecided: bool) -> None:
    pool = scripted_pool({"a": "x", "b": "y", "z": said})
    program = MixtureOfAgents("q -> answer", "a + b > select(z)", pool=pool, adapter=PlainChat())
    answer = program(q="?").mixture
    assert answer.is_undecided is is_undecided
    assert ("1 ranker without a readable choice" in answer.summary) is is_undecided


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


class Colour(Enum):
    RED = "red"


class City(pydantic.BaseModel):
    name: str
    people: float | None = None


EQUAL: list[tuple[Any, Any]] = [
    (3, 3.0),
    (0.1, Decimal("0.1")),
    (1e16, 10**16),
    ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}),
    ({"a", "b", "c"}, {"c", "b", "a"}),
    ([1, [2, {"x": 3}]], [1.0, [2, {"x": 3.0}]]),
    (["Paris", " rome"], ["paris", "Rome"]),
    (City(name="Rome", people=3), City(name="rome", people=3.0)),
    (
        datetime(2024, 1, 2, 12, tzinfo=UTC),
        datetime(2024, 1, 2, 14, tzinfo=timezone(timedelta(hours=2))),
    ),
    (float("nan"), None),
    (np.float64(3), 3),
    (np.array([1, 2]), [1, 2]),
]
DIFFERENT: list[tuple[Any, Any]] = [
    (3, "3"),
    (True, 1),
    (True, "True"),
    (None, "None"),
    (None, 0),
    (3, 4),
    ([1, 2], [2, 1]),
    ([1, 2], {1, 2}),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    (City(name="Rome"), City(name="Rome", people=0)),
    (City(name="Rome"), {"name": "Rome", "people": None}),
    (date(2024, 1, 2), datetime(2024, 1, 2)),  # without a zone on purpose
    (Colour.RED, "red"),
]


def typed_ballot(value: Any) -> Any:
    return ballot_of({"answer": value}, ["answer"], NORMALISERS["text"])


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal_typed_answers_are_one_typed_ballot(left: Any, right: Any) -> None:
    assert typed_ballot(left) == typed_ballot(right)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different_typed_answers_are_two_ballots(left: Any, right: Any) -> None:
    assert typed_ballot(left) != typed_ballot(right)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
TYPED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=2), inner),
    max_leaves=8,
)


@given(TYPED)
def test_a_value_and_its_copy_in_another_order_are_one_ballot(value: Any) -> None:
    def turned(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: turned(part[key]) for key in reversed(part)}
        return [turned(item) for item in part] if isinstance(part, list) else part

    assert typed_ballot(value) == typed_ballot(turned(value))
    assert hash(typed_ballot(value)) == hash(typed_ballot(turned(value)))


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_numbers_are_one_ballot_exactly_if_they_are_equal(left: int, right: int) -> None:
    assert (typed_ballot(left / 8) == typed_ballot(Decimal(right) / 8)) is (left == right)


@pytest.mark.parametrize(
    ("one", "other", "is_equal"),
    [
        (Fraction(7, 40), 0.175, True),
        (Fraction(-1, 8), Decimal("-0.125"), True),
        (Fraction(1, 3), 0.3333333333333333, False),
        (complex(1, 0), 1, True),
        (complex(1, 2), 1, False),
        (time(12, tzinfo=UTC), time(13, tzinfo=timezone(timedelta(hours=1))), True),
        (time(12), time(12, tzinfo=UTC), False),
    ],
)
def test_numbers_and_times_of_day_are_equal_by_value(one: Any, other: Any, is_equal: bool) -> None:
    normalise = NORMALISERS["answer"]
    ballots = [ballot_of({"answer": value}, ["answer"], normalise) for value in (one, other)]
    assert (ballots[0] == ballots[1]) is is_equal
