"""Real models judge on this machine; skipped, with the reason, where there are none.

SmolLM2 with its 135 million parameters rarely gives a verdict: the loops must count that. With
MOA_QWEN_15B, the path of a larger model's weights, that model judges instead.
"""

from __future__ import annotations

import os
from pathlib import Path

import dspy
import numpy as np
import pytest

from moa_dspy.agent import Agent
from moa_dspy.data import BENCHMARKS
from moa_dspy.errors import LocalModelError
from moa_dspy.judges import GradeJudge, PairJudge, SkillJudge, grade_all, judge_all
from moa_dspy.local import CATALOGUE, pull
from moa_dspy.pool import Pool

SHARED = Path(__file__).parents[2].parent / "shared"
SMALL, LARGE = "smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"


@pytest.fixture(scope="module")
def pool() -> Pool:
    pytest.importorskip("xllamacpp", reason="live: xllamacpp is not installed")
    if "MOA_QWEN_15B" in os.environ:
        agent = Agent(
            name="judge",
            model=f"local/{LARGE}",
            weights="${MOA_QWEN_15B}",
            sha256=CATALOGUE[LARGE].sha256,
            temperature=0.0,
            max_tokens=6,
            n_slots=2,
            n_threads=1,
        )
        return Pool([agent])
    try:
        pull(SMALL)
    except LocalModelError as error:
        pytest.skip(f"live: {error}")
    # One thread: threads that wait for each other are slow where other programs use the cores.
    agent = Agent(
        name="judge",
        model=f"local/{SMALL}",
        temperature=0.0,
        max_tokens=6,
        n_slots=2,
        n_threads=1,
    )
    return Pool([agent])


def shortest(name: str, n: int) -> list[dspy.Example]:
    """Return the questions with the least to read, so that a small machine is done soon."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"NOT RUN: the question files of {name} are not at ../shared/{name}.")
    rows = BENCHMARKS[name].read(folder)
    return sorted(rows, key=lambda row: sum(len(str(value)) for value in row.toDict().values()))[:n]


@pytest.mark.slow
@pytest.mark.live
def test_mt_bench_end_to_end(pool: Pool) -> None:
    rows = shortest("mt_bench", 2)
    judge = GradeJudge(pool=pool, agent="judge")
    run = grade_all(judge, rows, [["Yes.", "No."]] * 2, num_threads=2)
    print(run.report, run.means, [grades.reason for grades in run.graded])
    assert run.report.n == run.report.judged + run.report.unparsable == 2
    assert np.isnan(run.scores).sum() == run.report.unparsable
    assert all(1 <= mean <= 10 for mean in run.means.values())
    assert sum(len(grades.grades) for grades in run.graded) == 4


@pytest.mark.slow
@pytest.mark.live
def test_flask_end_to_end(pool: Pool) -> None:
    rows = shortest("flask", 2)
    judge = SkillJudge(pool=pool, agent="judge")
    run = grade_all(judge, rows, [row.reference for row in rows], num_threads=2)
    print(run.report, run.means, [grades.reason for grades in run.graded])
    assert run.report.n == run.report.judged + run.report.unparsable == 2
    assert np.isnan(run.scores).sum() == run.report.unparsable
    assert all(1 <= mean <= 5 for mean in run.means.values())
    assert sum(len(grades.grades) for grades in run.graded) == sum(len(row.skills) for row in rows)


@pytest.mark.slow
@pytest.mark.live
def test_a_local_judge_weights_what_it_says(pool: Pool) -> None:
    row = dspy.Example(id="1", question="Is 3 larger than 2?").with_inputs("question")
    judge = PairJudge(pool=pool, agent="judge")
    run = judge_all(judge, [row], "Yes.", "Bananas.")
    print(run.report, run.judgements)
    assert run.report.n == run.report.judged + run.report.unparsable == 1
    # A model's probabilities are never quite 0 or 1, so a weighted verdict is not either.
    assert all(0 < verdict < 1 for verdict in run.judgements[0].verdicts)
    assert run.report.sampled == 0
    again = judge_all(judge, [row], "Yes.", "Bananas.")
    assert again.judgements == run.judgements
