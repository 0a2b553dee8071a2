"""A folder of recorded answers becomes agents that a search asks, and a judge of what it picks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bench.made_up_answers import some_answers, write_letters
from tests.bench.quality._baselines import BASELINES
from tests.bench.quality._folder import read_folder
from tests.bench.quality._replay import Replay, agent_names
from tests.bench.quality._search import search
from tests.bench.quality._split import Task, first_judged, run
from tests.bench.quality._votes import ranked, vote_scores


def test_judged_questions_begin_after_1700_or_a_third_of_fewer() -> None:
    assert (first_judged(11_636), first_judged(4_600), first_judged(900)) == (1_700, 1_700, 300)


def test_letters_are_read_without_revised_and_repeated_questions(tmp_path: Path) -> None:
    written = write_letters(tmp_path)
    read = read_folder(tmp_path)
    assert read.n_questions == 298
    assert read.scores.tolist() == written.scores[:, :298].tolist()
    assert ((read.codes < 0) == (written.codes[:, :298] < 0)).all()
    assert read.pool("middle").names == ("m1", "m2", "m3")


def test_graded_answers_are_equal_when_stripped_and_copies_of_a_text_are_dropped(
    tmp_path: Path,
) -> None:
    texts = ["one", "two", "same", "same"]
    questions = [{"question_id": q, "question": text} for q, text in enumerate(texts)]
    given = {"a": (" x ", 1.0), "b": ("x", 1.0), "c": ("X", 0.5), "d": ("  ", 0.01)}
    responses = [
        {"question_id": q, "model": name, "extracted": text, "score": score}
        for q in range(4)
        for name, (text, score) in given.items()
    ]
    pq.write_table(pa.Table.from_pylist(questions), tmp_path / "questions.parquet")
    pq.write_table(pa.Table.from_pylist(responses), tmp_path / "responses.parquet")
    read = read_folder(tmp_path)
    assert read.codes.tolist() == [[0, 0], [0, 0], [1, 1], [-1, -1]]
    assert read.scores[:, 0].tolist() == [1.0, 1.0, 0.5, 0.0]
    # The median is 0.75: 1 and 0.5 are further off than 0.20, and so is 0.
    assert read.is_middle == (False, False, False, False)


def test_agents_have_different_names_in_the_notation_of_architectures() -> None:
    assert agent_names(["a b", "a+b", "vendor/x-1.5"]) == ("a-b-0", "a-b-1", "vendor/x-1.5")


@pytest.mark.slow
def test_a_search_looks_at_every_cell_once_and_at_no_judged_answer_but_its_own_test() -> None:
    answers = some_answers(n_models=3, n=80, is_graded=True, seed=6)
    found = search(answers, np.arange(30), np.arange(60, 66))
    assert found.cells == 3 * 30
    assert set(found.pick) <= {0, 1, 2}
    assert found.low <= found.expected <= found.high
    # The dev score it reports is that of the vote of its members, ties by dev scores.
    order = ranked(answers.at(np.arange(30)))
    weights = tuple(found.pick.get(i, 0.0) for i in order)
    assert found.val == pytest.approx(
        float(vote_scores(answers.at(np.arange(30)).of(order), weights).mean())
    )


def test_a_replay_counts_what_is_asked() -> None:
    answers = some_answers(n_models=2, n=10, is_graded=False)
    replay = Replay.of(answers, np.arange(10))
    assert replay.n_asked(np.arange(10)) == 0
    assert replay.responses[0]["3"] in (None, "answer 0", "answer 1", "answer 2", "answer 3")
    assert (replay.n_asked(np.arange(10)), replay.n_asked(np.array([4]))) == (1, 0)


@pytest.mark.slow
def test_a_draw_judges_all_on_the_same_questions(tmp_path: Path) -> None:
    write_letters(tmp_path)
    drawn = run(Task(tmp_path, "all", 30, 0, has_samplers=False))
    expected = {"ours", "recommended", "today", "agree2_top7", "optimum", "random", *BASELINES}
    assert expected <= set(drawn.scores) <= {*expected, "ours_agree2"}
    assert drawn.scores["optimum"] >= drawn.scores["top3"]
    assert drawn.scores["recommended"] in (drawn.scores["ours"], drawn.scores["best_single"])
    judged = read_folder(tmp_path).at(np.random.default_rng(1000).permutation(298)[99:])
    assert drawn.scores["best_single"] in judged.scores.mean(axis=1)
    assert json.dumps(drawn.facts)
