"""The mixture of a larger program is searched, compiled, saved and loaded, as a user does it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import dspy
import pytest

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool

SCRIPT = Path(__file__).parents[2] / "optimize" / "pipeline.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pipeline", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    path = tmp_path_factory.mktemp("out") / "pipeline.json"
    pool = scripted_pool({f"no-{kind}": script.reader(kind) for kind in script.KINDS})
    return (*script.main(pool, path), path)


def test_every_question_finds_its_passage(script: ModuleType) -> None:
    for row, passage in zip(script.rows(range(16)), script.PASSAGES, strict=True):
        assert script.retrieve(row.question).splitlines()[0] == passage
        assert row.answer in passage


def test_readers_that_err_on_different_facts_are_right_together(
    script: ModuleType, made: tuple[Any, Any, Path]
) -> None:
    program, _, _ = made
    assert len(program.answer.architecture.layers[0]) == 3
    for row in script.rows(range(16)):
        found = program(question=row.question)
        # In lower case, as a reader reads.
        assert found.answer == row.answer.lower()


def test_the_search_result_was_compiled_with_each_agents_own_examples(
    made: tuple[Any, Any, Path],
) -> None:
    program, _, _ = made
    for seat, agent in zip(
        program.predictors(), program.answer.architecture.layers[0], strict=True
    ):
        assert len(seat.demos) == 2
        blind_to = agent.removeprefix("no-")
        for demo in seat.demos:
            assert (demo.answer == f"no {blind_to}") is (blind_to in demo.question)


def test_what_was_saved_answers_as_what_was_made(
    script: ModuleType, made: tuple[Any, Any, Path], tmp_path: Path
) -> None:
    program, loaded, _ = made
    pool = program.answer.pool
    new = MixtureOfAgents(program.answer.signature, program.answer.architecture, pool=pool)
    new.rules = program.answer.rules
    program.save(tmp_path / "dspy.json")
    restored = script.Pipeline(new)
    restored.load(tmp_path / "dspy.json")
    asked = pool.calls.ledger.spending.made
    for row in script.rows(range(7, 16)):
        answers = [
            pipeline(question=row.question).toDict() for pipeline in (program, loaded, restored)
        ]
        assert answers[0] == answers[1] == answers[2]
    # The same prompts, so nothing new was asked.
    assert pool.calls.ledger.spending.made == asked


def test_the_saved_file_needs_nothing_but_a_pool(
    script: ModuleType, made: tuple[Any, Any, Path]
) -> None:
    _, _, path = made
    pool = scripted_pool({f"no-{kind}": script.reader(kind) for kind in script.KINDS})
    loaded = script.Pipeline(MixtureOfAgents.load(path, pool=pool))
    (row, *_) = script.rows(range(3, 4))
    with dspy.context(lm=None):
        assert loaded(question=row.question).answer == row.answer.lower()
    assert pool.calls.ledger.spending.made == 3
