"""DSPy's wrappers on a mixture, alone and in a larger program: who is asked, and how often."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import dspy
import pytest

from tests.mixture.world import exact, make_world, program_of, rows

EVERYWHERE = pytest.mark.parametrize("where", ["alone", "inside"])
SEATS: Final = ["layers[0].proposers[0]", "layers[0].proposers[1]", "aggregator"]


def hints(where: str) -> dict[str, str]:
    """What the outsider advises: a hint of its own for every seat."""
    path = "mixture." if where == "inside" else ""
    advice = {f"{path}{seat}": f"hint of {seat}" for seat in SEATS}
    return {"advice": json.dumps(advice)}


def never(args: dict[str, Any], prediction: Any) -> float:
    return 0.0


def is_known(args: dict[str, Any], prediction: Any) -> float:
    return float(prediction.answer != "unknown")


@EVERYWHERE
def test_best_of_n_asks_agents_and_leaves_the_program_alone(where: str) -> None:
    world = make_world()
    program = program_of(world, where)
    with dspy.context(lm=world.outsider, trace=[]):
        best = dspy.BestOfN(program, N=2, reward_fn=is_known, threshold=1.0)
        assert best(question="task 1").answer == "unknown"
        assert best(question="task 2").answer == "Q2"
        # Of each question the best attempt's trace is kept, a rewriting included.
        assert len(dspy.settings.trace) == (6 if where == "alone" else 8)
    # Greedy agents have one answer to a question, however often they are asked.
    assert {name: world.log.counts[name] for name in "abc"} == {"a": 2, "b": 2, "c": 2}
    assert set(world.log.by("g")) == ({"rewritten"} if where == "inside" else set())
    assert [predictor.lm for predictor in program.predictors()] == [None] * len(
        program.predictors()
    )


@EVERYWHERE
def test_refine_gives_every_seat_its_own_hint(where: str) -> None:
    world = make_world(hints(where))
    with dspy.context(lm=world.outsider):
        refined = dspy.Refine(program_of(world, where), N=2, reward_fn=never, threshold=1.0)
        assert refined(question="task 1").answer == "unknown"
    assert world.log.by("g")["advice"] == 1
    for agent, seat in zip("abc", SEATS, strict=True):
        first, second = world.log.prompts(agent)
        assert "hint of" not in first
        assert [f"hint of {other}" in second for other in SEATS] == [o == seat for o in SEATS]


@EVERYWHERE
def test_an_ensemble_takes_the_majority_of_mixtures(where: str) -> None:
    world = make_world()
    programs = [program_of(world, where) for _ in range(3)]
    ensemble = dspy.Ensemble(reduce_fn=dspy.majority).compile(programs)
    with dspy.context(lm=world.outsider):
        assert ensemble(question="task 4").answer == "Q4"
    assert {name: world.log.counts[name] for name in "abc"} == {"a": 1, "b": 1, "c": 1}
    assert "answer" not in world.log.by("g")


@EVERYWHERE
def test_parallel_answers_in_the_order_of_the_questions(where: str) -> None:
    world = make_world()
    program = program_of(world, where)
    with dspy.context(lm=world.outsider):
        pairs = [(program, row.inputs()) for row in rows(8)]
        found = dspy.Parallel(num_threads=4, disable_progress_bar=True)(pairs)
        batch = program.batch(rows(8), num_threads=4, disable_progress_bar=True)
    expected = [f"Q{n}" if n % 2 == 0 else "unknown" for n in range(8)]
    assert (
        [prediction.answer for prediction in found]
        == [prediction.answer for prediction in batch]
        == expected
    )
    assert {name: world.log.counts[name] for name in "abc"} == {"a": 8, "b": 8, "c": 8}
    assert "answer" not in world.log.by("g")


@EVERYWHERE
@pytest.mark.parametrize("n_threads", [1, 4])
def test_evaluate_scores_shows_and_saves_the_users_own_fields(
    where: str, n_threads: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    files = {"save_as_json": str(tmp_path / "all.json"), "save_as_csv": str(tmp_path / "all.csv")}
    evaluate = dspy.Evaluate(
        devset=rows(4), metric=exact, num_threads=n_threads, display_table=True, **files
    )
    with dspy.context(lm=world.outsider):
        result = evaluate(program_of(world, where))
    assert result.score == 50.0
    assert [score for _, _, score in result.results] == [1, 0, 1, 0]
    saved = json.loads((tmp_path / "all.json").read_text("utf-8"))
    assert saved[1] == {
        "question": "task 1",
        "example_answer": "Q1",
        "pred_answer": "unknown",
        "exact": 0.0,
    }
    assert (tmp_path / "all.csv").read_text("utf-8").count("task") == 4
    assert {name: world.log.counts[name] for name in "abc"} == {"a": 4, "b": 4, "c": 4}
    assert "pred_answer" in capsys.readouterr().out


@EVERYWHERE
def test_asyncify_and_syncify_ask_the_same_agents(where: str) -> None:
    world = make_world()
    program = program_of(world, where)

    async def ask() -> Any:
        return await dspy.asyncify(program)(question="task 2")

    with dspy.context(lm=world.outsider):
        assert asyncio.run(ask()).answer == "Q2"
        assert dspy.syncify(program, in_place=False)(question="task 4").answer == "Q4"
        assert asyncio.run(program.acall(question="task 6")).answer == "Q6"
        assert program(question="task 8").answer == "Q8"
    assert {name: world.log.counts[name] for name in "abc"} == {"a": 4, "b": 4, "c": 4}
    assert "answer" not in world.log.by("g")
