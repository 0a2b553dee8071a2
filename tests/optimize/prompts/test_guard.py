"""A prompt is accepted only if it is proven better on rows that it was not tuned on."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import dspy
import pytest
from dspy import teleprompt as tp

from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Budget, Ledger
from moa_dspy.errors import BudgetReachedError, LayerFailedError, MetricError
from moa_dspy.optimize import PromptReport, optimize_aggregator
from moa_dspy.optimize.prompts import Counted
from moa_dspy.testing import scripted_pool
from tests.optimize.prompts.optimizers import copro, gepa, mipro, simba
from tests.optimize.prompts.world import exact, make_world, mixture, rows

MIPRO = {"num_trials": 4, "minibatch": False}


@pytest.mark.parametrize(("make", "options"), [(copro, {}), (gepa, {}), (mipro, MIPRO)])
def test_where_no_prompt_is_better_the_incumbent_stays(make: Any, options: Any) -> None:
    world = make_world(learns=False)
    program = mixture(world)
    result = optimize_aggregator(
        program, make(world.outsider), rows("train", 8), rows("val", 18), compile_options=options
    )
    assert not result.accepted
    assert (result.val.p_value, result.val.difference.estimate) == (1.0, 0.0)
    kept = result.program.aggregator.signature
    assert kept.instructions == program.aggregator.signature.instructions
    assert "Keep the prompt" in str(PromptReport(result))


def test_a_gain_on_too_few_rows_is_not_accepted_and_the_missing_rows_are_told() -> None:
    world = make_world()
    # 3 of 9 rows are won: the mid-p value, half of 1 / 2 ** 3, is more than 5 %.
    result = optimize_aggregator(
        mixture(world), copro(world.outsider), rows("train"), rows("val", 9)
    )
    assert (result.accepted, result.val.p_value) == (False, 1 / 16)
    assert result.after.instructions == "Think CAREFULLY."
    assert result.val.n_more > 0
    assert f"about {result.val.n_more} more validation rows" in str(PromptReport(result))
    assert "CAREFULLY" not in result.program.aggregator.signature.instructions


def test_the_optimizer_never_sees_a_validation_or_test_row() -> None:
    for make in (gepa, simba):
        world = make_world()
        optimize_aggregator(
            mixture(world),
            make(world.outsider),
            rows("train", 8),
            rows("val", 6),
            testset=rows("test", 6),
        )
        prompts = "\n".join(world.log.prompts("g"))
        assert not [n for n in (*range(1000, 1006), *range(2000, 2006)) if str(n) in prompts]


def test_stored_references_cost_no_call_and_every_call_is_counted() -> None:
    world = make_world()
    train, val, test = rows("train"), rows("val", 18), rows("test", 6)
    program = mixture(world)
    for row in (*train, *val, *test):
        program(question=row.question)
    before = world.log.counts
    result = optimize_aggregator(program, copro(world.outsider), train, val, testset=test)
    asked = {who: n - before[who] for who, n in world.log.counts.items()}
    # The incumbent's answers are stored as well: 6 + 18 + 6 of the new prompt are not.
    assert asked == {"a": 0, "b": 0, "c": 30, "g": 1}
    assert result.calls_of("proposers").reused == 60
    assert (
        result.calls_of("proposers").made,
        result.calls_of("aggregator").made,
        result.calls_of("prompt_model").made,
    ) == (0, 30, 1)
    assert result.test is not None
    assert (result.test.before.estimate, result.test.after.estimate) == (4 / 6, 1)


def test_a_prompt_model_from_the_pool_is_told_apart_from_the_aggregator() -> None:
    world = make_world()
    told = "[[ ## proposed_instruction ## ]]\nThink CAREFULLY.\n\n"
    told += "[[ ## proposed_prefix_for_output_field ## ]]\nAnswer:\n\n[[ ## completed ## ]]"
    pool = make_world(scripts={"p": lambda prompt: told}).pool
    world.pool = pool
    optimizer = copro(pool.lm("p"))
    optimizer.breadth = 4
    for made, reused in ((3, 0), (0, 3)):
        result = optimize_aggregator(mixture(world), optimizer, rows("train"), rows("val", 18))
        # COPRO asks for three completions; a second run takes them from the store.
        assert result.calls_of("prompt_model") == Counted(made, reused)
        assert result.calls_of("aggregator").made == 16 * made
        assert result.accepted


def test_a_budget_that_ends_is_an_error_and_not_a_bad_score() -> None:
    world = make_world()
    # References of 6 train rows take 12 calls, so 3 are left to tune with.
    world.pool.calls.ledger = Ledger(Budget(calls=15))
    with pytest.raises(BudgetReachedError, match="The budget of 15 calls is reached"):
        optimize_aggregator(mixture(world), copro(world.outsider), rows("train"), rows("val"))
    assert world.log.counts["c"] == 3


def test_an_optimizer_that_hides_an_error_does_not_get_away_with_it() -> None:
    class Hides(tp.Teleprompter):
        def compile(self, student: Any, *, trainset: Any) -> Any:
            for row in trainset:
                with suppress(BudgetReachedError):
                    student(**row.inputs())
            world.pool.calls.ledger = Ledger()
            return student

    world = make_world()
    world.pool.calls.ledger = Ledger(Budget(calls=15))
    with pytest.raises(BudgetReachedError, match="The budget of 15 calls is reached"):
        optimize_aggregator(mixture(world), Hides(), rows("train"), rows("val"), metric=exact)


@pytest.mark.parametrize(("share", "n_judging"), [(0.5, 4), (0.25, 2), (0.0, None)])
def test_an_optimizer_judges_by_its_share_of_the_train_rows(
    share: float, n_judging: int | None
) -> None:
    class Look(tp.Teleprompter):
        def compile(self, student: Any, *, trainset: Any, valset: Any = None) -> Any:
            given.append((trainset, valset))
            return student

    given: list[Any] = []
    world = make_world()
    train, val = rows("train", 8), rows("val", 3)
    optimize_aggregator(mixture(world), Look(), train, val, metric=exact, tuning_share=share)
    ((tunes, judges),) = given
    assert (None if judges is None else len(judges)) == n_judging
    assert sorted(row.id for row in [*tunes, *(judges or [])]) == [row.id for row in train]


def test_an_optimizer_that_asks_anew_needs_no_global_lm() -> None:
    world = make_world()
    # On the first row the aggregator is wrong, so that a second round is tried.
    options: Any = {"max_labeled_demos": 0, "max_rounds": 2, "max_errors": 1}
    optimizer = tp.BootstrapFewShot(metric=exact, **options)
    result = optimize_aggregator(mixture(world), optimizer, rows("train"), rows("val", 3))
    assert len(result.after.demos) == 4


def test_a_metric_that_raises_is_an_error_and_not_a_bad_score() -> None:
    def broken(example: Any, prediction: Any) -> float:
        return float(prediction.confidence)

    world = make_world()
    with pytest.raises(MetricError, match="The metric raised AttributeError on example 'train-"):
        optimize_aggregator(
            mixture(world), copro(world.outsider), rows("train"), rows("val"), metric=broken
        )


def test_an_aggregator_that_fails_scores_0_and_ends_nothing() -> None:
    world = make_world(scripts={"c": RuntimeError("down")})
    result = optimize_aggregator(
        mixture(world), gepa(world.outsider), rows("train"), rows("val", 3)
    )
    assert (result.accepted, result.val.before.estimate, result.val.after.estimate) == (False, 0, 0)


def test_rows_without_references_are_told_and_none_at_all_is_an_error() -> None:
    def often(prompt: str) -> str:
        if "task 2" in prompt:
            raise RuntimeError("down")
        return "[[ ## answer ## ]]\nQ1\n\n[[ ## completed ## ]]"

    world = make_world(scripts={"a": often, "b": often})
    result = optimize_aggregator(
        mixture(world), copro(world.outsider), rows("train"), rows("val", 3)
    )
    assert result.notes == ("1 train rows have no references: train-2",)
    down = {"a": RuntimeError("down"), "b": RuntimeError("down")}
    world = make_world(scripts=down)
    with pytest.raises(LayerFailedError, match="No train row has references"):
        optimize_aggregator(mixture(world), copro(world.outsider), rows("train"), rows("val"))


def test_plain_chat_of_the_settings_is_for_the_seats_alone() -> None:
    def plain(prompt: str) -> str:
        return "Q" if "CAREFULLY" in prompt else "wrong"

    world = make_world()
    world.pool = scripted_pool({"a": "x", "b": "y", "c": plain}, reads_all=True)
    examples = [
        dspy.Example(question=f"train {n}", answer="Q").with_inputs("question") for n in range(4)
    ]
    others = [
        dspy.Example(question=f"val {n}", answer="Q").with_inputs("question") for n in range(5)
    ]
    with dspy.context(adapter=PlainChat()):
        result = optimize_aggregator(mixture(world), copro(world.outsider), examples, others)
    # 5 of 5 rows are won: the mid-p value is half of 1 / 2 ** 5.
    assert (result.accepted, result.val.p_value) == (True, 1 / 64)
    assert result.calls_of("proposers").made == 2 * 9
    assert [one.score for one in result.candidates] == [1.0, 0.0]
