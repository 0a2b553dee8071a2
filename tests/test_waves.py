from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.adapters import PlainChat
from moa_dspy.aggregators import NORMALISERS, Vote
from moa_dspy.architecture import Architecture
from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.nodes import NodeCache, NodeRunner
from moa_dspy.plan import Planner, Rules, follow
from moa_dspy.prediction import Answer, Question, Response
from moa_dspy.testing import scripted_pool
from moa_dspy.waves import Waves
from tests.mixture.asking import BOTH, ask, program


def says(*answers: str | None, seconds: Sequence[float] = ()) -> dict[str, Response]:
    """Return what the agents a, b, c ... say; None is no answer."""
    took = [*seconds, *[1.0] * (len(answers) - len(seconds))]
    return {
        agent: Response(agent, failure="down", calls=1, seconds=s)
        if said is None
        else Response(agent, values={"answer": said}, text=said, calls=1, seconds=s)
        for agent, said, s in zip("abcdefghi", answers, took, strict=False)
    }


def run(
    architecture: Architecture | str, said: dict[str, Response], **options: Any
) -> tuple[Answer, list[list[str]]]:
    """Run a vote over scripted responses; also return whom each round asked."""
    mixture = Architecture.parse(architecture) if isinstance(architecture, str) else architecture
    seats = [[None] * len(layer) for layer in mixture.layers]
    planner = Planner(mixture, seats, None, ("answer",), None, Rules(**options))  # type: ignore[arg-type]  # nothing is read
    rounds: list[list[str]] = []

    def ask_all(questions: list[Question]) -> list[Response]:
        rounds.append([question.agent for question in questions])
        return [said[question.agent] for question in questions]

    return follow(planner.plan({}), ask_all), rounds


@pytest.mark.parametrize(
    ("weights", "answers", "winner"),
    [
        # Two agents: x has 1.5, y has 0.8.
        ("a:1.5 b:0.8", "xy", "x"),
        ("a:0.8 b:1.5", "xy", "y"),
        # Three: x has 1.5; y has 0.8 + 1 = 1.8, or 0.4 + 1 = 1.4.
        ("a:1.5 b:0.8", "xyy", "y"),
        ("a:1.5 b:0.4", "xyy", "x"),
        # A tie, 0.3 against 0.1 + 0.2, which floats miss: c is the heaviest.
        ("a:0.1 b:0.2 c:0.3", "xxy", "y"),
        ("a:1.5 b:0.5", "xyy", "x"),  # 1.5 against 0.5 + 1
    ],
)
def test_an_answer_has_the_sum_of_the_weights_of_who_gave_it(
    weights: str, answers: str, winner: str
) -> None:
    names = " + ".join("abc"[: len(answers)])
    for stop_early in (False, True):
        answer, _ = run(
            f"{names} > vote(; weights={weights})", says(*answers), stop_early=stop_early
        )
        assert answer.final.text == winner


def test_a_weighted_tie_goes_to_the_tie_breaker() -> None:
    # 2 for x of a, 1 + 1 for y of b and c.
    assert run("a + b + c > vote(; weights=a:2)", says(*"xyy"))[0].final.agent == "a"
    assert run("a + b + c > vote(c; weights=a:2)", says(*"xyy"))[0].final.agent == "c"


def test_who_gave_no_answer_weighs_nothing_and_if_all_did_there_is_none() -> None:
    vote = "a + b + c > vote(; weights=a:5)"
    assert run(vote, says(None, "y", "x"))[0].final.agent == "b"
    with pytest.raises(LayerFailedError, match=r"0 of 3 agents answered\. a: down; b: down"):
        run(vote, says(None, None, None))


def test_one_member_is_asked_once_and_wins() -> None:
    answer, rounds = run("a > vote", says("x"))
    assert (answer.final.text, rounds, answer.not_asked) == ("x", [["a"]], ())


@pytest.mark.parametrize(
    ("notation", "answers", "rounds"),
    [
        # Seven equal ones: four agree, and three cannot change it.
        ("vote", "xxxxyyy", ["abcd"]),
        # 3 : 1, three left. One more x: 4 to at most 1 + 2.
        ("vote", "xxyxxyy", ["abcd", "e"]),
        # 2 : 2, three left: x wins the tie of 3 : 3, so two could settle it: 4 to at most 3.
        ("vote", "xxyyxxy", ["abcd", "ef"]),
        ("vote", "xxyyxyy", ["abcd", "ef", "g"]),
        # The tie-breaker is asked first, as its response is returned if it is among the winners.
        ("vote(g)", "xxxxyyx", ["gabc"]),
        # An answer that is missing settles nothing. Three x, and three left: x wins a tie.
        ("vote", [None, *"xxxxyy"], ["abcd"]),
        ("vote", [None, None, *"xxxyy"], ["abcd", "e"]),
        # a and b have 4 + 3 of 12; the others 5.
        ("vote(; weights=a:4 b:3)", "xxyyyyy", ["ab"]),
        ("vote(; weights=f:4 g:3)", "yyyyyxx", ["fg"]),
        # The first two agree, whatever the others would say.
        ("vote(; agree=2)", "xxyyyyy", ["ab"]),
        ("vote(; order=c d; agree=2)", "xxyyyyy", ["cd"]),
        # They do not: one x and one y, so the x of c, d and e would be four to one and two left.
        ("vote(; agree=2)", "xyxxxyy", ["ab", "cde"]),
        ("vote(; agree=2)", [None, *"xxxxyy"], ["ab", "cd"]),
        # A lead of half the weight to come. Three lead by 3, half of 4 is 2; 2 : 1 and 2 : 2 are
        # not enough, 3 : 2 is: 1 of 2.
        ("vote(; lead=0.5)", "xxyyyyy", ["abc", "d", "e"]),
        # A quarter: 2 of 5, where 1 of 6 is too little.
        ("vote(; lead=0.25)", "xxyyyyy", ["ab"]),
        # a alone has 4 of 10, and half of 6 is 3.
        ("vote(; weights=a:4; lead=0.5)", "xyyyyyy", ["a"]),
        # 1 of 5 is less than a quarter, 1 : 1 no lead, and 2 : 1 with 3 left is one.
        ("vote(; lead=0.25)", [None, *"xyyyyy"], ["ab", "c", "d"]),
    ],
)
def test_members_are_asked_in_waves_until_the_others_can_change_nothing(
    notation: str, answers: Sequence[str | None], rounds: list[str]
) -> None:
    said = says(*answers)
    answer, asked = run(f"a + b + c + d + e + f + g > {notation}", said)
    assert ["".join(wave) for wave in asked] == rounds
    assert answer.calls == sum(map(len, rounds)) == 7 - len(answer.not_asked)
    assert answer.seconds == len(rounds)
    assert not {response.agent for response in answer.responses} & set(answer.not_asked)


def test_without_early_stopping_agreement_asks_two_rounds_and_a_vote_one() -> None:
    vote, said = "a + b + c + d > vote", says(*"xyyy")
    assert run(vote, said, stop_early=False)[1] == [list("abcd")]
    assert run("a + b + c + d > vote(; agree=2)", said, stop_early=False)[1] == [
        ["a", "b"],
        ["c", "d"],
    ]
    assert run("a + b + c + d > select(; agree=2)", said)[1] == [["a", "b"], ["c", "d"]]
    answer, rounds = run("a + b + c + d > select(; agree=2)", says(*"xxyy"))
    assert (answer.final.text, rounds) == ("x", [["a", "b"]])


def test_members_that_agreed_are_alone_also_where_all_were_asked() -> None:
    pool = scripted_pool({"a": "x", "b": "x", "c": "y", "d": "y", "e": "y"})
    program = MixtureOfAgents(
        "q -> answer", "a + b + c + d + e > vote(; agree=2)", pool=pool, adapter=PlainChat()
    )
    planned = program.plan({"q": "?"})
    first = next(planned)
    assert [question.agent for question in first] == ["a", "b"]
    assert program(q="?").answer == "x"


def test_a_quorum_is_asked_for_before_anything_is_settled() -> None:
    answer, rounds = run("a + b + c + d + e > vote", says(*"xxxxx"), quorum=4)
    assert (answer.final.text, rounds) == ("x", [["a", "b", "c", "d"]])
    with pytest.raises(LayerFailedError, match=r"3 of 5 agents answered\. d: down; e: down"):
        run("a + b + c + d + e > vote", says("x", "x", "x", None, None), quorum=4)


def random_vote(rng: random.Random) -> tuple[Architecture, dict[str, Response]]:
    n = rng.randint(1, 7)
    names = list("abcdefg"[:n])
    order = tuple(rng.sample(names, rng.randint(0, n)))
    weights = tuple((name, rng.choice([0.5, 1.0, 1.5, 2.0, 3.0])) for name in names)
    breaker = rng.choice([None, *names])
    vote = Architecture(
        (tuple(names),), breaker, "vote", order, weights=weights if rng.random() < 0.6 else ()
    )
    # Case is no difference between answers, but one between responses.
    return vote, says(*(rng.choice(["x", "X", "y", "Y", "z", None]) for _ in names))


def outcome(vote: Architecture, said: dict[str, Response], **options: Any) -> str | Response:
    try:
        return run(vote, said, **options)[0].final
    except LayerFailedError as error:
        return str(error)


@pytest.mark.slow
def test_exact_stopping_returns_what_the_full_vote_returns() -> None:
    rng = random.Random(0)
    saved = 0
    for _ in range(10_000):
        vote, said = random_vote(rng)
        quorum = rng.choice([1, 1, 2, 3])
        full = outcome(vote, said, stop_early=False, quorum=quorum)
        assert outcome(vote, said, quorum=quorum) == full
        if isinstance(full, Response):
            saved += len(run(vote, said, quorum=quorum)[0].not_asked)
    assert saved > 5_000


def test_a_lead_stops_with_the_answer_of_those_whom_it_asked_whoever_else_is_asked() -> None:
    rng = random.Random(2)
    saved = 0
    for _ in range(1_000):
        vote, said = random_vote(rng)
        led_vote = replace(vote, lead=rng.choice([0.1, 0.25, 0.5, 0.75, 0.9]))
        quorum = rng.choice([1, 1, 2, 3])
        stopped = outcome(led_vote, said, quorum=quorum)
        assert outcome(led_vote, said, stop_early=False, quorum=quorum) == stopped
        if not isinstance(stopped, Response):
            continue
        answer, _ = run(led_vote, said, quorum=quorum)
        missing = {name: Response(name, failure="not asked") for name in answer.not_asked}
        assert outcome(vote, said | missing, stop_early=False, quorum=quorum) == stopped
        exact, _ = run(vote, said, quorum=quorum)
        assert answer.calls <= exact.calls
        saved += exact.calls - answer.calls
    assert saved > 200


def test_waves_ask_no_one_whom_asking_one_by_one_would_spare() -> None:
    rng = random.Random(1)
    for _ in range(1_000):
        n = rng.randint(1, 7)
        weights = tuple(rng.choice([1, 1, 2, 3]) for _ in range(n))
        lead = rng.choice([None, Fraction(1, 4), Fraction(2, 3)])
        waves = Waves(weights, tuple(range(n)), lead=lead)
        answers = [rng.choice(["x", "y", "z", None]) for _ in range(n)]
        said: dict[int, str | None] = {}
        while due := waves.due(said):
            said |= {place: answers[place] for place in due}
        one_by_one: dict[int, str | None] = {}
        while not (one_by_one and waves.is_settled(one_by_one)):
            one_by_one[len(one_by_one)] = answers[len(one_by_one)]
        assert said == one_by_one


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from("xyz"), min_size=1, max_size=7),
    st.floats(min_value=1e-3, max_value=1e3),
)
def test_equal_weights_are_the_plain_vote(answers: list[str], weight: float) -> None:
    names = tuple("abcdefg"[: len(answers)])
    weights = tuple((name, weight) for name in names)
    weighed = Architecture((names,), None, "vote", weights=weights)
    plain = Architecture((names,), None, "vote")
    assert weighed == plain
    assert run(weighed, says(*answers))[0].final == run(plain, says(*answers))[0].final
    vote = Vote(("answer",), NORMALISERS["text"], None, dict.fromkeys(names, 3))
    assert next_of(vote, says(*answers)) == run(plain, says(*answers))[0].final


def next_of(vote: Vote, said: dict[str, Response]) -> Response:
    try:
        next(vote({}, list(said.values())))
    except StopIteration as stop:
        found: Response = stop.value
        return found
    raise AssertionError("a vote asks nothing")


@settings(max_examples=300, deadline=None)
@given(st.permutations("abcde"), st.lists(st.sampled_from("xyz"), min_size=5, max_size=5))
def test_the_order_of_members_does_not_matter_to_weights(
    seats: list[str], answers: list[str]
) -> None:
    # 0.5, 1, 2, 4 and 8: no two sums are the same, so there is no tie.
    weights = tuple(zip("abcde", (0.5, 1.0, 2.0, 4.0, 8.0), strict=True))
    sorted_ = Architecture((tuple("abcde"),), None, "vote", weights=weights)
    mixed = Architecture((tuple(seats),), None, "vote", weights=weights)
    final = run(mixed, says(*answers))[0].final
    assert final == run(sorted_, says(*answers))[0].final
    totals: dict[str, float] = {}
    for answer, (_, weight) in zip(answers, weights, strict=True):
        totals[answer] = totals.get(answer, 0) + weight
    assert totals[final.text] == max(totals.values())


@BOTH
def test_a_program_sends_only_what_it_needs_and_says_whom_it_trusts(is_async: bool) -> None:
    mixture = program(dict.fromkeys("abcde", "x"), "a + b + c + d + e > vote(; weights=a:2.5)")
    answer = ask(mixture, is_async=is_async)
    # a has 2.5 of 6.5; with b 3.5, and the others have 3.
    assert mixture.pool.calls.ledger.spending.made == answer.calls == 2
    assert answer.not_asked == ("c", "d", "e")
    assert "3 not asked, weight of a 2.5" in answer.summary
    assert answer.weights == {"a": 2.5}


@BOTH
def test_a_failed_member_is_counted_and_the_next_one_asked(is_async: bool) -> None:
    scripts = {"a": "x", "b": lm15.ServerError("down"), "c": "x", "d": "y", "e": "y"}
    answer = ask(program(scripts, "a + b + c + d + e > vote"), is_async=is_async)
    # a, b and c: 2 x, and the two others could draw level, which the first answer wins.
    assert ([r.agent for r in answer.responses], answer.not_asked) == (["a", "b", "c"], ("d", "e"))
    assert [r.agent for r in answer.failures] == ["b"]


@BOTH
def test_within_a_deadline_waves_save_calls(is_async: bool) -> None:
    mixture = program(dict.fromkeys("abcde", "x"), "a + b + c + d + e > vote", deadline_seconds=60)
    answer = ask(mixture, is_async=is_async)
    assert (answer.final.text, mixture.pool.calls.ledger.spending.made) == ("x", 3)
    assert (answer.calls, answer.not_asked, answer.failures) == (3, ("d", "e"), ())


@BOTH
def test_after_a_quarter_of_the_deadline_all_others_are_asked(is_async: bool) -> None:
    release = threading.Event()

    def slow(_: str) -> str:
        release.wait(20)
        return "y"

    scripts: dict[str, Any] = {**dict.fromkeys("abde", "x"), "c": slow}
    mixture = program(scripts, "a + b + c + d + e > vote", deadline_seconds=4)
    began = time.monotonic()
    if is_async:
        # A script of a test blocks the loop.
        release.set()
    answer = ask(mixture, is_async=is_async)
    took = time.monotonic() - began
    release.set()
    assert answer.final.text == "x"
    assert took < 3.5
    if not is_async:
        assert took >= 1
        # d settles it, so e may be on its way still.
        left = [r.agent for r in answer.responses if r.is_left_out]
        assert left in (["c"], ["c", "d"], ["c", "e"])
        assert f"{len(left)} no longer waited for" in answer.summary
        assert answer.failures == ()


def replayed(said: dict[str, Response], **options: Any) -> tuple[Answer, dict[str, Any]]:
    """Run a vote as a search does, which knows all responses."""
    mixture = program(dict.fromkeys(said, "?"), " + ".join(said) + " > vote", **options)
    cache, runner = NodeCache(), None
    for question in (q for q in _all(mixture) if q.agent in said):
        cache.put(("row", None), [question], [said[question.agent]])
    runner = NodeRunner(cache, "row")
    answer = runner.answer(mixture, {"q": "?"})
    assert mixture.pool.calls.ledger.spending.made == 0
    return answer, runner.costs(())


def _all(mixture: MixtureOfAgents) -> list[Question]:
    rules = mixture.rules
    bare = Planner(
        Architecture(mixture.architecture.layers, None, "select"),
        [layer.proposers for layer in mixture.layers],
        None,
        ("answer",),
        mixture.pool,
        rules,
    )
    return next(bare.plan({"q": "?"}))


def test_a_search_pays_what_the_stopped_vote_costs() -> None:
    # 2 : 1 after 3 and 3 s, then d settles it: 3 to at most 1 + 1, 2 s later.
    answer, costs = replayed(says(*"xyxxy", seconds=[1, 3, 2, 2, 9]))
    assert (costs["calls"], costs["seconds"]) == (4, 5)
    assert (answer.calls, answer.seconds) == (4, 5)
    full, all_costs = replayed(says(*"xyxxy", seconds=[1, 3, 2, 2, 9]), stop_early=False)
    assert (all_costs["calls"], all_costs["seconds"], full.final) == (5, 9, answer.final)


def test_a_replay_keeps_to_the_deadline_as_the_program_would() -> None:
    # Of 20 s, c takes 9. After 5 s, d and e are asked too. d: 5 + 2, so at 7 x has three of five.
    answer, costs = replayed(says(*"xxyxy", seconds=[1, 1, 9, 2, 8]), deadline_seconds=20)
    assert (answer.final.text, costs["calls"], costs["seconds"]) == ("x", 5, 7)
    assert [r.agent for r in answer.responses if r.is_left_out] == ["c", "e"]
    # With 16 s for e to say y, and 15 left: it is late, and x and y draw level: a is first.
    answer, costs = replayed(says(*"yxxyy", seconds=[9, 1, 1, 2, 16]), deadline_seconds=20)
    assert (answer.final.text, costs["seconds"]) == ("y", 20)
    assert [r.failure for r in answer.failures] == ["Late: no answer within 15 s."]


def test_within_a_deadline_a_lead_counts_those_who_are_asked_first() -> None:
    # b takes 9 of 20 s; after 5 all are asked. c, d and e say y by 7, and would win; but a and b
    # come first, and x leads by 2 when b has answered: 2 of the 3 to come is more than a half.
    said = says(*"xxyyy", seconds=[1, 9, 2, 2, 2])
    cache, names = NodeCache(), " + ".join(said)
    mixture = program(dict.fromkeys(said, "?"), f"{names} > vote(; lead=0.5)", deadline_seconds=20)
    for question in (q for q in _all(mixture) if q.agent in said):
        cache.put(("row", None), [question], [said[question.agent]])
    runner = NodeRunner(cache, "row")
    answer = runner.answer(mixture, {"q": "?"})
    assert (answer.final.text, runner.costs(())["seconds"]) == ("x", 9)


def test_a_traced_run_asks_every_member_as_an_optimizer_learns_from_each() -> None:
    asked: list[str] = []

    def says_x(name: str) -> Callable[[str], str]:
        def script(_: str) -> str:
            asked.append(name)
            return "x"

        return script

    pool = scripted_pool({name: says_x(name) for name in "abcd"}, reads_all=True)
    vote = MixtureOfAgents(
        "question -> answer", "a + b + c + d > vote", pool=pool, adapter=PlainChat()
    )
    # Two that agree win the tie that the other two could bring about.
    assert len(vote(question="q").mixture.layers[0]) == 2
    with dspy.context(trace=[]):
        found = vote(question="q")
        assert len(dspy.settings.trace) == 4
    assert (found.answer, sorted(asked)) == ("x", list("abcd"))
    # A setting of another kind is no trace.
    with dspy.context(max_errors=1):
        assert len(vote(question="q").mixture.layers[0]) == 2
