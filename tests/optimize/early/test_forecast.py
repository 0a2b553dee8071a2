from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from moa_dspy import Agent, ModelSearch, Pool
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.data import answer_match
from moa_dspy.optimize.early_facts import AgentCosts, Cost, middle_of
from moa_dspy.optimize.forecast import StudyPlan, estimated
from moa_dspy.optimize.prompts.options import TuningEffort
from moa_dspy.optimize.shares import AgentEstimate, smallest_limit
from moa_dspy.optimize.space import ProgramSpace, SearchSpace
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE

ONE = AgentCosts(Cost(calls=1, tokens=100, usd=0.01, seconds=2.0))
AGENTS = {"a": ONE, "b": ONE}
VOTES = SearchSpace(("a", "b"), ("vote",), max_depth=1)
SCORES: Any = {"a": [1.0] * 10, "b": [1.0] * 10}
UNLIKE = {name: [f"{name}{row}" for row in range(10)] for name in "ab"}


def plan(space: SearchSpace, **options: Any) -> StudyPlan:
    """Return the plan of a study of two agents that never say the same, on 10 rows of val."""
    known = {"scores": SCORES, "replies": UNLIKE, "ballots": UNLIKE}
    asked: Any = {"n_trials": 50, "n_val": 10, "n_test": 0, **known, **options}
    return StudyPlan(space, AGENTS, **asked)


def listed(*texts: str) -> SearchSpace:
    return replace(VOTES, max_depth=0, listed=tuple(map(Architecture.parse, texts)))


def test_votes_of_stored_answers_cost_nothing() -> None:
    samples = Architecture.parse("a*3 > vote")
    found = estimated(plan(VOTES, n_trials=30, n_test=5, num_threads=4, tested=[samples]))
    # val: 2 agents on 10 rows. Test: 2 agents and 2 more samples of Self-MoA on 5 rows; what was
    # not tried is compared on val too: 2 more samples on 10 rows.
    assert found.calls == 2 * 10 + (2 + 2) * 5 + 2 * 10
    assert found.tokens == 100 * 60
    assert found.usd == pytest.approx(0.01 * 60)
    # The samples are asked one after the other where two differ: 2 + 2 + 2 + 2 seconds.
    assert found.seconds == pytest.approx(2.0 * 60 / 4)
    assert found.capped_by is None


def test_what_is_done_is_exact_and_the_rest_has_a_range() -> None:
    # Two agents on 10 rows are done: 20 calls, 0.2 usd. Left are 20 calls on test, 0.2 usd.
    found = estimated(plan(VOTES, n_test=10))
    assert found.low is not None
    assert found.high is not None
    assert (found.low.calls, found.high.calls) == pytest.approx((20 + 20 / 1.1, 20 + 20 * 1.1))
    assert (found.low.usd, found.high.usd) == pytest.approx((0.2 + 0.2 / 1.2, 0.2 + 0.2 * 1.2))


def test_what_is_likely_is_the_middle_third_of_the_plays_in_each_unit() -> None:
    simulations = [
        {"search": Cost(calls=n, usd=9.0 - n), "all": Cost(calls=n + 1.0, usd=9.0 - n)}
        for n in (0, 1, 2, 3, 7)
    ]
    # (5 - 1) // 3 = 1 simulation is left out at either end: 1, 2, 3.
    found = middle_of(simulations)
    assert found["search"] == Cost(calls=2.0, usd=7.0)
    assert found["all"] == Cost(calls=3.0, usd=7.0)


def test_the_work_of_this_process_on_a_call_takes_time_too() -> None:
    asked = plan(VOTES, n_test=10, num_threads=4)
    without, found = estimated(asked), estimated(replace(asked, own_seconds=0.25))
    # 40 calls, one after the other in one process.
    assert found.seconds == pytest.approx(without.seconds + 40 * 0.25)
    assert sum(cost.seconds for cost in found.stages.values()) == pytest.approx(found.seconds)


def test_a_vote_asks_no_more_than_its_answer_needs() -> None:
    samples = Architecture.parse("a*3 > vote")
    greedy = {name: replace(ONE, is_greedy=True) for name in AGENTS}
    asked = plan(VOTES, n_test=10, tested=[samples])
    # Samples that say the same as a does, as two agents do, are settled by the second.
    same = {name: ["x"] * 10 for name in "ab"}
    agreed = replace(asked, replies=same, ballots=same)
    waits = replace(agreed, stops_early=False)
    counts = [estimated(study_plan).calls for study_plan in (asked, agreed, waits)]
    # On val and on test each: 10 rows of 2 more samples, or of 1.
    assert counts == [20 + 20 + 40, 20 + 20 + 20, 20 + 20 + 40]
    # What is greedy says what it said.
    assert estimated(replace(waits, agents=greedy)).calls == 20 + 20


@pytest.mark.parametrize(
    ("last_step", "asked"),
    [
        # Of three that agree two settle the vote: the tie-breaker, then the first seat.
        ("vote(c)", ("c", "a")),
        # Then those of the order; an agent of more weight than all others settles it alone.
        ("vote(c; order=b)", ("c", "b")),
        ("vote(c; weights=c:3)", ("c",)),
        ("vote(b; weights=c:3)", ("b", "c")),
    ],
)
def test_members_of_a_vote_are_asked_in_its_own_order(
    last_step: str, asked: tuple[str, ...]
) -> None:
    vote = Architecture.parse(f"a + b + c > a + b + c > {last_step}")
    space = replace(VOTES, agents=("a", "b", "c"), max_depth=0, listed=(vote,))
    usd = {"a": 1.0, "b": 10.0, "c": 100.0}
    agents = {n: replace(ONE, alone=replace(ONE.alone, usd=price)) for n, price in usd.items()}
    known: Any = {name: ["x"] * 10 for name in usd}
    study = plan(space, scores={name: [1.0] * 10 for name in usd}, replies=known, ballots=known)
    found = estimated(replace(study, agents=agents))
    assert found.usd == pytest.approx(10 * 111 + 10 * sum(usd[name] for name in asked))


def test_layers_and_aggregators_are_asked_anew() -> None:
    # One architecture takes part besides the singles: a*2 + b > a + b > synthesize(a). Its first
    # layer asks a again, the second both, then the aggregator: 4 calls, of 2 + 2 + 2 seconds.
    found = estimated(plan(listed("a*2 + b > a + b > synthesize(a)")))
    # On 10 rows: two singles, and it, once for the search and the baseline together.
    assert found.calls == 20 + 40
    assert found.seconds == pytest.approx(20 * 2 + 10 * 6)


def test_the_requests_of_one_agent_at_a_time_bound_the_time() -> None:
    # 10 rows, 4 at a time, take 5 seconds an agent; b answers one at a time, in 20.
    agents = {"a": ONE, "b": replace(ONE, max_concurrent=1)}
    found = estimated(replace(plan(VOTES, num_threads=4), agents=agents))
    assert found.seconds == pytest.approx(20)


def test_what_two_architectures_ask_alike_is_asked_once() -> None:
    texts = ("a + b > a*2 > synthesize(a)", "a + b > a + b > synthesize(a)", "a + b > vote")
    found = estimated(plan(listed(*texts)))
    # Second layers: a, a again, and b, once each; then two aggregators. The vote is free.
    assert found.calls == 20 + (3 + 2) * 10


def test_equal_references_are_read_once() -> None:
    # A reader of a and b is asked the same as one of a and c where b and c say the same.
    space = SearchSpace(("a", "b", "c"), ("vote",), max_depth=0)
    texts = ("a + b > synthesize(a)", "a + c > synthesize(a)")
    space = replace(space, listed=tuple(map(Architecture.parse, texts)))
    replies = {"a": ["x"] * 10, "b": ["y"] * 10, "c": ["y"] * 5 + ["z"] * 5}
    asked = plan(space, replies=replies, ballots=replies, scores={n: [1.0] * 10 for n in "abc"})
    found = estimated(replace(asked, agents={**AGENTS, "c": ONE}))
    assert found.calls == 30 + 10 + 5


def test_readers_pay_for_what_they_read() -> None:
    reader = replace(ONE, reply_tokens=40, text_tokens=40, usd_per_prompt_token=0.001)
    asked = replace(plan(listed("a + b > synthesize(a)")), agents={"a": reader, "b": reader})
    found = estimated(asked)
    # Two answers of 40 tokens and their marks, and the instructions with a heading of 3 words.
    instructions = 1.2 * (len(AGGREGATE_AND_SYNTHESIZE.split()) + 3)
    more = 10 * (2 * (40 + 5) + instructions)
    assert found.tokens == round(30 * 100 + more)
    assert found.usd == pytest.approx(30 * 0.01 + more * 0.001)


def test_a_ranker_replies_with_a_number() -> None:
    agent = replace(ONE, reply_tokens=40, usd_per_reply_token=0.0001)
    assert agent.reading(10, reply=2) == Cost(1.0, 100 + 10 - 38, 0.01 - 0.0038, 2.0)


def test_a_model_of_this_machine_takes_time_to_read() -> None:
    # 50 tokens read and 5 written took 2 s: as long as 100 read ones.
    agent = AgentCosts(Cost(1, 55, 0.0, 2.0), reply_tokens=5.0)
    local = replace(agent, is_local=True)
    assert local.reading(150).seconds == pytest.approx(2.0 + 150 * 0.02)
    assert local.reading(0, reply=3).seconds == pytest.approx(2.0 - 2 * 10 * 0.02)
    assert agent.reading(150).seconds == 2.0


def test_a_loser_is_stopped_early_in_the_estimate_too() -> None:
    # b is wrong everywhere, and so is what it writes half of the time or more.
    scores = {"a": [1.0] * 100, "b": [0.0] * 100}
    replies = {name: [f"{name}{row}" for row in range(100)] for name in "ab"}
    asked = plan(listed("b*2 > b*2 > synthesize(b)"), scores=scores, replies=replies, n_val=100)
    found = estimated(replace(asked, ballots=replies, n_trials=5))
    # Singles: 200. It is stopped at the first look, after 20 of 100 rows of 4 more calls.
    assert found.calls == pytest.approx(200 + 20 * 4, rel=0.1)


def test_no_more_is_tried_than_there_is() -> None:
    space = SearchSpace(("a", "b"), ("synthesize",), max_depth=1)
    few, many = (estimated(plan(space, n_trials=n, n_test=1)).high for n in (4, 4_000))
    # 2 singles, and a + b with either aggregator.
    assert space.size == 4
    assert few is not None
    assert many is not None
    assert few.calls == many.calls


def test_baselines_are_tried_before_the_votes_that_make_no_call() -> None:
    space = SearchSpace(("a", "b"), ("vote", "synthesize"), max_depth=1)
    given = [Architecture.parse(text) for text in ("a + b > vote", "a + b > synthesize(a)")]
    found = estimated(plan(space, n_trials=4, given=given, n_free=3))
    # Of 4 trials 2 are single agents and 2 baselines, of which one asks a once on each row.
    assert found.stages["search"].calls == 10


@pytest.mark.parametrize(
    ("budget", "capped_by"),
    [
        (Budget(calls=30), "calls"),
        (Budget(tokens=3_000), "tokens"),
        (Budget(usd=0.3), "usd"),
        (Budget(seconds=15.0), "seconds"),
        (Budget(calls=40, usd=0.3), "usd"),
    ],
)
def test_a_budget_ends_the_study_at_its_first_limit(budget: Budget, capped_by: str) -> None:
    samples = Architecture.parse("a*3 > vote")
    found = estimated(plan(VOTES, n_test=5, num_threads=4, tested=[samples]), budget)
    # Half of 60 calls in every case; what the whole study would take is still said.
    assert (found.calls, found.capped_by) == (60, capped_by)
    assert found.ceiling == getattr(budget, capped_by)
    assert found.share == pytest.approx(0.5)
    assert found.usd == pytest.approx(0.6)
    assert found.seconds == pytest.approx(30.0)


def test_a_large_budget_changes_nothing_and_the_seed_decides() -> None:
    asked = plan(SearchSpace(("a", "b")), n_trials=9, n_test=1, seed=3)
    assert estimated(asked) == estimated(asked, Budget(calls=1_000))


def test_the_range_holds_the_expected_value() -> None:
    space = SearchSpace(("a", "b", "c"), ("synthesize",))
    asked = StudyPlan(space, {**AGENTS, "c": ONE}, n_trials=12, n_val=10, n_test=10)
    found = estimated(asked)
    assert found.low is not None
    assert found.high is not None
    for name in ("calls", "tokens", "usd", "seconds"):
        low, high = getattr(found.low, name), getattr(found.high, name)
        assert low - 1 <= getattr(found, name) <= high + 1  # calls and tokens are whole
    assert found.low.calls < found.high.calls


def test_before_the_single_agents_are_known_they_are_made_up() -> None:
    space = SearchSpace(("a", "b"), ("synthesize",), max_depth=1)
    stages = StudyPlan(space, AGENTS, n_trials=4, n_val=10, n_test=5).stages()
    assert list(stages) == ["single agents", "search", "random baseline", "test", "all"]
    # The two mixtures are all that there is: the baseline draws them again.
    assert [costs.calls for costs in stages["single agents"]] == [20, 20, 20]
    # What the simulations cannot know is in the range: a tenth of the calls.
    assert [costs.calls for costs in stages["search"]] == pytest.approx([20 / 1.1, 20, 20 * 1.1])
    assert [costs.calls for costs in stages["random baseline"]] == [0, 0, 0]


def test_tuning_of_prompts_is_foretold() -> None:
    space = listed("a + b > synthesize(a)")
    effort = TuningEffort(1, 8, answers_per_row=4, written=3, writer="b")
    found = plan(space, n_test=5, effort=effort, given=space.listed).stages()["prompts"]
    # 8 train rows: two references and four answers of a each. Three prompts of b.
    assert found[1].calls == pytest.approx(8 * (2 + 4) + 3)


def test_without_tuning_prompts_cost_nothing() -> None:
    effort = TuningEffort(0, 8, answers_per_row=4, written=3, writer=None)
    with_prompts, without = (
        plan(VOTES, n_test=5, effort=effort_or_none) for effort_or_none in (effort, None)
    )
    assert estimated(with_prompts) == estimated(without)


@pytest.mark.parametrize("combine", ["fuse", "knockout"])
def test_a_last_step_of_several_rounds_is_foretold(combine: str) -> None:
    space = SearchSpace(("a", "b"), combines=(combine,), max_depth=1)
    found = plan(space, n_trials=4, n_test=1).stages()
    # Two agents, and their pair ended by a or by b: an analysis and an answer of each, or two
    # comparisons, on 10 rows.
    assert found["search"][1].calls == 2 * 2 * 10


def test_a_judge_compares_every_answer() -> None:
    found = plan(VOTES, n_test=5, judged=Cost(calls=2)).stages()
    # On val 2 agents and their vote, which the baseline draws again; on test 2 agents and 5 more.
    assert found["judge"][1].calls == 2 * ((2 + 1 + 3) * 10 + (2 + 5) * 5)


def test_a_mixture_of_a_program_is_asked_again_where_it_reads_something_else() -> None:
    agents = {"a": AgentCosts(Cost(calls=2)), "b": AgentCosts(Cost(calls=2))}
    votes = SearchSpace(("a", "b"), combines=("vote",), max_depth=1)
    space = ProgramSpace.of({"query": votes, "answer": votes})
    found = StudyPlan(space, agents, n_trials=9, n_val=1, n_test=1).stages()
    # Both agents, in both mixtures, are the single agents. The vote of two queries is one of them,
    # so that a and b answer 2 queries, one call each; two of these are of single agents, and
    # queries are known.
    assert found["single agents"][1].calls == 2 * 2
    assert found["search"][1].calls == 2 * 2 - 2


def test_before_agents_are_measured_each_play_ranks_them_anew() -> None:
    rankings = []
    unknown = plan(VOTES, n_trials=10, scores={}, replies={}, ballots={})

    def ranked(ranking: Sequence[str]) -> StudyPlan:
        rankings.append("".join(ranking))
        return unknown

    estimated(replace(unknown, ranked=ranked))
    assert len(rankings) == 15  # each simulation is one search
    assert {"ab", "ba"} == set(rankings)


@pytest.mark.parametrize(("share", "seconds"), [(0.5, 20.0), (1.0, 40.0)])
def test_a_processor_answers_one_question_after_the_other(share: float, seconds: float) -> None:
    local = replace(ONE, max_concurrent=1, processor_share=share)
    asked = replace(plan(VOTES, num_threads=4), agents={"a": local, "b": local})
    # Each of two models answers 10 questions in 2 s each; both at once if each has half the cores.
    assert estimated(asked).seconds == pytest.approx(seconds)


def test_what_is_known_of_a_local_model_before_is_its_time_alone() -> None:
    local, served = (
        Agent(name="a", model="local/smollm2-135m-instruct", max_concurrent=4),
        Agent(name="b", model="openai/x", api_base="http://x/v1", max_concurrent=4),
    )
    pool = Pool([local, served])
    tokens = {"low": 1.0, "likely": 2.0, "high": 4.0}
    a, b = (
        AgentEstimate(name, None, tokens, tokens, seconds=3.0).costs("likely", pool)
        for name in "ab"
    )
    assert (a.max_concurrent, a.processor_share) == (1, 1.0)
    assert (b.max_concurrent, b.processor_share) == (4, 0.0)
    # Of one answer the time of others is known within a factor of 1.5.
    ends = [
        AgentEstimate("b", None, tokens, tokens, seconds=3.0).costs(level, pool).alone.seconds
        for level in ("low", "high")
    ]
    assert ends == pytest.approx([2.0, 4.5])
    space = SearchSpace(("a", "b"), ("synthesize",))
    options = ModelSearch(answer_match, pool, space=space, num_threads=4).options
    asked = {"a": 10, "b": 10}
    found = smallest_limit(options, "seconds", {"a": 3.0, "b": 3.0}, asked, {"a": 5, "b": 5})
    # Alone: 10 of 3 s, and 10 of 3 s at four times; on test the same 5; a last answer and 5 s.
    assert found == pytest.approx((30 + 7.5) + (15 + 3.75) + 3 + 5)
