"""What is simulated of a study follows from the single agents' answers."""

from __future__ import annotations

import random
from typing import Any

import dspy
import numpy as np
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.early_facts import AgentCosts, Cost
from moa_dspy.optimize.forecast import StudyPlan, estimated
from moa_dspy.optimize.simulated_answers import (
    MixtureAnswers,
    ReadingHabit,
    SimulatedAnswers,
    SimulatedInputs,
    SimulatedMeanings,
)
from moa_dspy.optimize.simulation import SimulatedRace
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.references import count_tokens, tokens_beyond_val

RIGHT = [1.0, 1.0, 1.0, 1.0]
VOTE = Architecture.parse("a + b + c > vote(a)")


def simulated(scores: Any, replies: Any) -> SimulatedAnswers:
    return SimulatedAnswers(scores, replies, replies)


def texts(answers: SimulatedAnswers, name: str, row: int, *read: str) -> set[Any]:
    """Return what an agent says on a row, having read others, for a hundred draws."""
    said = [answers.alone(other, row) for other in read]
    return {answers.anew(name, row, said, random.Random(n)).text for n in range(100)}


def test_an_agent_of_few_answers_says_what_it_reads_in_its_own_words() -> None:
    # Both pick letters, each in its own way: what a means is always one of two texts.
    replies = {"a": ["A", "B", "A", "B"], "b": ["It is A", "It is B", "It is A", "It is B"]}
    answers = simulated({"a": RIGHT, "b": RIGHT}, replies)
    assert texts(answers, "a", 0, "a", "b") == {"A"}
    assert texts(answers, "b", 1, "a") == {"It is B"}


def test_free_text_is_worded_anew_each_time() -> None:
    replies = {name: [f"{name} {row}" for row in range(4)] for name in "ab"}
    assert len(texts(simulated({"a": RIGHT, "b": RIGHT}, replies), "a", 0, "b")) == 100


def test_agents_that_word_right_answers_alike_take_each_others_words() -> None:
    # Numbers: b errs on the last row, where it may say what a says.
    answers = simulated(
        {"a": [1, 1, 1], "b": [1, 1, 0]}, {"a": ["1", "2", "3"], "b": ["1", "2", "4"]}
    )
    assert texts(answers, "b", 2, "a") == {"3", "4"}
    assert texts(answers, "b", 0, "a") == {"1"}


@pytest.mark.parametrize(
    ("habit", "said", "score"),
    [
        ("own", {"y"}, 0.0),
        ("any", {"x", "y", "right"}, 1 / 3),
        ("most", {"x"}, 0.0),
        ("right", {"y", "right"}, 0.9),
    ],
)
def test_readers_take_what_they_read_in_several_ways(
    habit: ReadingHabit, said: set[str], score: float
) -> None:
    # a and b say x, c is right, and d, which says y alone, reads all of them.
    n_rows = 400
    words = {"a": "x", "b": "x", "c": "right", "d": "y"}
    replies: Any = {name: [word] * n_rows for name, word in words.items()}
    scores = {name: np.full(n_rows, float(name == "c")) for name in words}
    answers = SimulatedAnswers(scores, replies, replies).with_habit(habit)
    read = [answers.alone(name, 0) for name in "abc"]
    assert {answers.anew("d", 0, read, random.Random(n)).meaning for n in range(100)} == said
    # Scores of mixtures in which b and c are read by d: of the three answers one is right.
    found = SimulatedMeanings(answers, np.random.default_rng(0))
    assert found.scores(Architecture.parse("b + c > synthesize(d)")).mean() == pytest.approx(
        score, abs=0.08
    )


def test_a_reader_that_says_something_else_is_wrong_more_often() -> None:
    replies: Any = {name: ["right"] * 400 for name in "ab"}
    answers = SimulatedAnswers({n: np.ones(400) for n in "ab"}, replies, replies).with_habit("new")
    # Three rows in ten are answered anew, in words that no one has used.
    found = SimulatedMeanings(answers, np.random.default_rng(0))
    mixture = Architecture.parse("a + b > synthesize(a)")
    assert found.scores(mixture).mean() == pytest.approx(0.7, abs=0.08)
    read = [answers.alone("b", 0)]
    means = [answers.anew("a", 0, read, random.Random(n)).meaning for n in range(400)]
    assert means.count("right") / 400 == pytest.approx(0.7, abs=0.08)
    assert len(set(means)) > 50


def test_the_scores_of_a_vote_of_single_agents_are_known() -> None:
    scores = {"a": [0, 1, 1], "b": [1, 0, 1], "c": [1, 0, 0]}
    replies = {"a": ["x", "r", "r"], "b": ["r", "y", "r"], "c": ["r", "z", "w"]}
    # Two of three, then a tie that a decides, then two of three.
    assert simulated(scores, replies).voted(VOTE).tolist() == [1, 1, 1]
    other = Architecture.parse("a + b + c > vote(b)")
    assert simulated(scores, replies).voted(other).tolist() == [1, 0, 1]


def test_a_vote_of_agents_that_read_others_is_counted_and_equal_nodes_answer_alike() -> None:
    # Each keeps its own answer: the vote of a layer is that of its agents alone, 2 of 3 rows.
    scores = {"a": np.array([0.0, 1, 0]), "b": np.array([1.0, 0, 0]), "c": np.array([1.0, 1, 0])}
    replies: Any = {"a": ["x", "r", "x"], "b": ["r", "y", "y"], "c": ["r", "r", "z"]}
    answers = SimulatedAnswers(scores, replies, replies).with_habit("own")
    found = SimulatedMeanings(answers, np.random.default_rng(0))
    deep = Architecture.parse("a + b > a + b + c > vote(a)")
    assert found.scores(deep).tolist() == [1, 1, 0]
    # Two never outvote the one that decides.
    assert found.scores(Architecture.parse("b + c > a + b > vote(a)")).tolist() == [0, 1, 0]
    others = SimulatedMeanings(answers.with_habit("any"), np.random.default_rng(0))
    once = others.scores(deep).tolist()
    others.scores(Architecture.parse("a + b > a + b + c > synthesize(a)"))
    assert others.scores(deep).tolist() == once


def test_a_tie_of_a_weighted_vote_goes_to_the_heaviest_that_is_asked_first() -> None:
    replies: Any = {"a": ["x"], "b": ["x"], "c": ["r"], "d": ["y"]}
    scores = {name: np.array([float(said == ["r"])]) for name, said in replies.items()}
    answers = SimulatedAnswers(scores, replies, replies).with_habit("own")
    # x and r have two votes each; of their members c is asked first, after d.
    vote = Architecture.parse("a + b > a + b + c + d > vote(d; weights=c:2)")
    assert SimulatedMeanings(answers, np.random.default_rng(0)).scores(vote).tolist() == [1]


def test_on_other_inputs_an_agent_says_what_it_or_another_said_on_its_own() -> None:
    answers = simulated({"a": [0.0], "b": [0.0]}, {"a": ["x"], "b": ["y"]})
    said = [answers.elsewhere("a", 0, random.Random(n)).meaning for n in range(400)]
    assert set(said) == {"x", "y"}
    # Its own half of the time, and half of the other half.
    assert said.count("x") / 400 == pytest.approx(0.75, abs=0.08)


def mixture_answers(replies: Any, places: Any) -> MixtureAnswers:
    return MixtureAnswers({}, replies, replies, places)


def test_a_mixture_of_a_program_reads_what_its_inputs_of_single_agents_show() -> None:
    # On row 0 the first answers of a and b differ in words alone; on row 1 they differ.
    first = {"a": ["well x", "y"], "b": ["x", "z"]}
    equal = {"a": ["q", "r"], "b": ["q", "r"]}
    answers = [simulated({"a": RIGHT[:2], "b": RIGHT[:2]}, first)] * 2
    second = mixture_answers(first, {"a": ["x", "y"], "b": ["x", "z"]})
    reads = SimulatedInputs(answers, [mixture_answers(first, equal), second])
    assert reads.of(1, ["well x"]) == reads.of(1, ["x"]) == reads.own(1, "a", 0)
    assert reads.own(1, "a", 1) != reads.own(1, "b", 1)
    assert reads.of(1, ["else"]) == ("else",)
    # One that is given the same whatever the first answers does not read it.
    alone = SimulatedInputs(answers, [mixture_answers(first, equal)] * 2)
    assert alone.own(1, "a", 1) == alone.own(1, "b", 1) == alone.of(1, ["else"]) == ()
    # Where nothing is known yet, every answer is read.
    unknown = SimulatedInputs(answers)
    assert unknown.own(1, "a", 0) == ("well x",)
    assert unknown.of(1, ["x"]) == unknown.own(1, "b", 0)


def test_the_pick_of_a_race_leaves_the_best_agent_for_more_than_luck() -> None:
    # Each of three errs on another third of 30 rows: their vote is always right, 10 rows more,
    # and 2 standard deviations of luck are 2 * sqrt(10) = 6.3 rows.
    rows = np.arange(30)
    scores = {name: (rows % 3 != place) * 1.0 for place, name in enumerate("abc")}
    replies = {
        n: [f"{n}{row}" if not s else "right" for row, s in enumerate(found)]
        for n, found in scores.items()
    }
    race = SimulatedRace(simulated(scores, replies), n_trials=5)
    assert race.pick() == Architecture.single("a")
    assert race.rows_of(VOTE) == 30
    assert race.pick() == VOTE
    few = {name: found[:9] for name, found in scores.items()}
    short = SimulatedRace(
        simulated(few, {n: found[:9] for n, found in replies.items()}), n_trials=5
    )
    short.rows_of(VOTE)
    # 3 rows more are less than 2 * sqrt(3) = 3.5.
    assert short.pick() == Architecture.single("a")


def test_a_stopped_arm_has_scores_up_to_its_stop() -> None:
    scores = {"a": [1.0] * 100, "b": [0.0] * 100}
    replies = {name: [f"{name}{row}" for row in range(100)] for name in "ab"}
    race = SimulatedRace(simulated(scores, replies), n_trials=5)
    found = race.scores_of(Architecture.parse("b*2 > synthesize(b)"))
    assert np.isnan(found[20:]).all()
    assert (found[:20] == 0).all()


def test_rows_of_other_splits_cost_what_their_length_says() -> None:
    def rows(name: str, text: str) -> tuple[dspy.Example, ...]:
        made = dspy.Example(question=f"{text} {name}", answer="1", id=name)
        return (made.with_inputs("question"),)

    short, long = "One?", "Two words more than that, or three?"
    made = {"train": rows("x", short), "val": rows("y", short), "test": rows("z", long)}
    found = tokens_beyond_val(made)
    more = (count_tokens(f"{long} z") - count_tokens(f"{short} y")) / 1.35
    assert found == pytest.approx({"train": 0.0, "val": 0.0, "test": more})
    # Two agents on 10 rows of val and 5 of test, each of these 10 tokens longer.
    agents = {n: AgentCosts(Cost(1, 100, 0.01, 1.0), usd_per_prompt_token=0.001) for n in "ab"}
    plan = StudyPlan(
        SearchSpace(("a", "b"), ("vote",), max_depth=1),
        agents,
        n_trials=5,
        n_val=10,
        n_test=5,
        scores={name: np.ones(10) for name in "ab"},
        replies={name: list(range(10)) for name in "ab"},
        ballots={name: list(range(10)) for name in "ab"},
        beyond_val={"test": 10.0},
    )
    assert estimated(plan).tokens == 30 * 100 + 10 * 10
    assert estimated(plan).usd == pytest.approx(30 * 0.01 + 10 * 10 * 0.001)


def test_a_search_is_played_by_its_own_rule_or_by_draws() -> None:
    # One agent is right everywhere, two nowhere: the search's rule has it write most answers.
    scores = {"a": np.ones(10), "b": np.zeros(10), "c": np.zeros(10)}
    replies = {name: [f"{name}{row}" for row in range(10)] for name in scores}
    agents = {name: AgentCosts(Cost(1, 100, 0.01, 1.0)) for name in scores}
    space = SearchSpace(tuple(scores), ("synthesize",), max_depth=2)
    shares = []
    for is_acquired in (True, False):
        plan = StudyPlan(
            space,
            agents,
            n_trials=12,
            n_val=10,
            n_test=5,
            scores=scores,
            replies=replies,
            ballots=replies,
            is_acquired=is_acquired,
        )
        tried = [arch for play in range(5) for arch in plan.search(play).mixtures]
        shares.append(sum(arch.aggregator == "a" for arch in tried) / len(tried))
    assert shares[0] > 0.6 > shares[1]
