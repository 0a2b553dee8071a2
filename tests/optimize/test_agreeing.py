"""Votes whose first members are alone if they agree, where a search counts calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Limits, ModelSearch, SearchSpace
from moa_dspy.optimize.report import result_lines
from moa_dspy.optimize.result import StudyResult
from moa_dspy.optimize.study_file import StudyFile, read_study
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(prediction.answer == example.answer)


def searched(
    fails_on: Make,
    rows: Make,
    student: Make,
    *,
    lead: tuple[float, ...] = (),
    **options: Any,
) -> ModelSearch:
    """Search votes of five agents, each wrong on its own fifth of the rows."""
    pool = scripted_pool({f"e{i}": fails_on(i, of=5, says=f"no{i}") for i in range(5)})
    space = SearchSpace(
        tuple(pool),
        combines=("vote",),
        max_depth=1,
        min_width=5,
        max_width=5,
        agree=(2,),
        lead=lead,
    )
    search = ModelSearch(exact, pool, space=space, n_trials=16, **options)
    splits = {"valset": rows("val", 30), "testset": rows("test", 20)}
    search.compile(student(pool), trainset=[], **splits)
    return search


FIRST_TWO = "e0 + e1 + e2 + e3 + e4 > vote(e0; order=e0 e1; agree=2)"


@pytest.mark.parametrize(
    "options",
    [{"objectives": ("win_rate", "calls")}, {"limits": Limits(calls=3.7)}],
    ids=["objective", "limit"],
)
def test_where_calls_count_the_best_two_are_asked_first(
    fails_on: Make, rows: Make, student: Make, options: dict[str, Any]
) -> None:
    found = searched(fails_on, rows, student, **options).result
    known = {Architecture.parse(trial.architecture): trial for trial in found.trials}
    agreeing = known[Architecture.parse(FIRST_TWO)]
    full = known[Architecture.parse("e0 + e1 + e2 + e3 + e4 > vote(e0; order=e1)")]
    # Stopping early asks three, and a fourth where one of them is wrong: 3 fifths of the rows.
    assert full.score == agreeing.score == 1.0
    assert full.calls == pytest.approx(3.6)
    # Two of five rows are asked of four, the others of two.
    assert agreeing.calls == pytest.approx(2.8)
    if "objectives" in options:
        assert agreeing.architecture in found.front
        assert full.architecture not in found.front  # as right, and it asks more


def test_no_lead_is_tried_where_all_members_are_asked_at_once(
    fails_on: Make, rows: Make, student: Make
) -> None:
    def asks_all(pool: Pool) -> MixtureOfAgents:
        found: MixtureOfAgents = student(pool)
        found.rules = replace(found.rules, stop_early=False)
        return found

    found = searched(fails_on, rows, asks_all, lead=(0.5,), objectives=("win_rate", "calls"))
    votes = [trial for trial in found.result.trials if trial.origin == "votes"]
    tried = {Architecture.parse(trial.architecture): trial for trial in votes}
    assert {arch.lead for arch in tried} == {None}
    # Two agree on three rows of five; elsewhere all five are asked.
    assert tried[Architecture.parse(FIRST_TWO)].calls == pytest.approx(0.6 * 2 + 0.4 * 5)


def test_what_is_as_good_as_the_pick_for_fewer_calls_is_said(
    fails_on: Make, rows: Make, student: Make
) -> None:
    objectives = ("win_rate", "calls")
    result = searched(fails_on, rows, student, objectives=objectives, min_gain=0.2).result
    # It is as right as the whole vote, and of equals that with fewer calls is picked.
    assert result.pick == Architecture.parse(FIRST_TWO)
    # So are three, which ask two, and the third where one of these is wrong: 2.4 of 2.8 calls.
    three = result.savings["e0 + e1 + e2 > vote(e0)"]
    assert (three.kind, three.estimate, three.n) == ("as_good", 0.0, 20)
    assert three.ratio == pytest.approx(2.4 / 2.8)
    (line,) = [line for line in result_lines(result) if line.startswith("As good as the pick")]
    assert line.startswith("As good as the pick for 14 % fewer calls: e0 + e1 + e2 > vote(e0), ")
    assert line.endswith("against the pick on 20 test questions, so not worse by 20.0 points.")
    # No vote of three is in the space, so val has no cross-fitted difference to one.
    assert result.for_less is None
    assert not any(line.startswith("Cheaper") for line in result_lines(result))
    chosen = replace(result, for_less="e0 + e1 + e2 > vote(e0)")
    assert StudyResult.from_json(chosen.to_json()).for_less == chosen.for_less
    (line,) = [line for line in result_lines(chosen) if line.startswith("Cheaper")]
    head = "Cheaper, no worse than the pick on val: e0 + e1 + e2 > vote(e0): 100.0 %, 2.4 calls, "
    assert line.startswith(head)
    alone = searched(fails_on, rows, student, objectives=("win_rate",)).result
    assert (alone.savings, alone.for_less) == ({}, None)


def test_a_lead_is_tried_where_it_asks_fewest(fails_on: Make, rows: Make, student: Make) -> None:
    objectives = ("win_rate", "calls")
    found = searched(fails_on, rows, student, lead=(0.5, 0.6), objectives=objectives).result
    known = {Architecture.parse(trial.architecture): trial for trial in found.trials}
    # Two lead by 2 of 3, and after 1 : 1 one by 1 of 2: two calls on three fifths, else three.
    leads = known[Architecture.parse("e0 + e1 + e2 + e3 + e4 > vote(e0; lead=0.5)")]
    assert leads.score == 1.0
    assert leads.calls == pytest.approx(2.4)
    assert Architecture.parse(FIRST_TWO) not in known
    with pytest.raises(StudyError, match=r"`space.lead` must be numbers between 0 and 1, .* 1\.5"):
        SearchSpace(("a", "b"), lead=(0.5, 1.5))


def test_where_only_the_score_counts_none_is_tried(
    fails_on: Make, rows: Make, student: Make
) -> None:
    found = searched(fails_on, rows, student).result
    assert all(Architecture.parse(trial.architecture).agree is None for trial in found.trials)


def test_a_first_group_is_two_at_least() -> None:
    with pytest.raises(StudyError, match=r"`space.agree` must be numbers of 2 or more, but got 1"):
        SearchSpace(("a", "b"), agree=(1,))


def read(tmp_path: Path, space: str, task: str = "") -> StudyFile:
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "s"\n'
        f'[task]\nsignature = "question -> answer"\nmetric = "answer_match"\n{task}\n'
        '[data]\npath = "rows.jsonl"\ninputs = ["question"]\n'
        f"[space]\n{space}\n"
        '[[agents]]\nname = "a"\nmodel = "openai/a"\n[[agents]]\nname = "b"\nmodel = "openai/b"\n'
    )
    return read_study(path)


def test_combiners_and_stopping_are_words_of_a_study_file(tmp_path: Path) -> None:
    text = 'combines = ["fuse", "knockout", "vote"]\nagree = [2, 3]\naggregators = ["b"]\n'
    text += 'listed = ["a + b > fuse(a; analyst=b)", "a*4 > vote(a; agree=2)"]\n'
    study = read(tmp_path, text, "stop_early = false")
    space = study.make_space(study.agents)
    assert (space.combines, space.agree) == (("fuse", "knockout", "vote"), (2, 3))
    assert space.holds(Architecture.parse("a + b > fuse(b)"))
    assert space.holds(Architecture.parse("a + b > knockout(b)"))
    assert not space.holds(Architecture.parse("a + b > knockout(a)"))
    for arch in space.listed:
        assert space.holds(arch)
    program = study.make_student(scripted_pool({"a": "x", "b": "x"}))
    assert program.rules.stop_early is False
    assert read(tmp_path, "").make_student(scripted_pool({"a": "x"})).rules.stop_early is True


def test_an_unknown_combiner_is_told_the_known_ones(tmp_path: Path) -> None:
    study = read(tmp_path, 'combines = ["fusion"]')
    with pytest.raises(StudyError, match="fuse, knockout, select, synthesize, vote"):
        study.make_space(study.agents)
