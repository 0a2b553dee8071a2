"""The judge loops on every question of the real files, with scripted judges.

The files are not part of this repository: where they are not beside it, these tests are skipped.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import dspy
import pytest

from moa_dspy.data import BENCHMARKS
from moa_dspy.judges import SKILLS, GradeJudge, SkillJudge, grade_all, judge_all
from moa_dspy.testing import scripted_pool

SHARED = Path(__file__).parents[2].parent / "shared"


def questions(name: str) -> list[dspy.Example]:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"NOT RUN: the question files of {name} are not at ../shared/{name}.")
    return BENCHMARKS[name].read(folder)


class Clerk:
    """Grades by the length of the answer, and keeps what it was sent."""

    def __init__(self, best: int) -> None:
        self.best = best
        self.prompts: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, prompt: str) -> str:
        with self._lock:
            self.prompts.append(prompt)
        given = prompt.rsplit(": ", 1)[1].strip('"')
        return "I would rather not say." if given == "?" else str(min(len(given), self.best))


def test_mt_bench_is_graded_turn_by_turn() -> None:
    rows = questions("mt_bench")
    assert len(rows) == 80
    clerk = Clerk(best=10)
    pool = scripted_pool({"judge": clerk})
    judge = GradeJudge(pool=pool, agent="judge")
    run = grade_all(judge, rows, [["1234567", "123"]] * 80)
    # 7 characters and 3: grades 7 and 3, their mean 5 scaled to (5 - 1) / 9.
    assert run.means == {"turn 1": 7.0, "turn 2": 3.0}
    assert run.counts == {"turn 1": 80, "turn 2": 80}
    assert run.scores == pytest.approx([4 / 9] * 80)
    assert pool.calls.ledger.spending.made == 160
    # Coding, mathematics and reasoning: 10 questions of each, two turns.
    assert sum("\n\nreference_answer: " in prompt for prompt in clerk.prompts) == 60
    later = [prompt for prompt in clerk.prompts if prompt.startswith("conversation: user: ")]
    assert len(later) == 80
    assert all('\nassistant: "1234567"\n\nquestion: ' in prompt for prompt in later)


def test_mt_bench_without_some_verdicts_counts_them() -> None:
    rows = questions("mt_bench")
    judge = GradeJudge(pool=scripted_pool({"judge": Clerk(best=10)}), agent="judge")
    ours = [["12345", "?"] if n % 4 == 0 else ["12345", "12345"] for n in range(80)]
    run = judge_all(judge, rows, ours, [["123", "1234"]] * 80)
    assert (run.report.judged, run.report.unparsable) == (60, 20)
    assert run.win_rate().value == 1.0
    assert run.win_rate().n == 60


@pytest.mark.slow
def test_flask_is_rated_skill_by_skill() -> None:
    rows = questions("flask")
    assert len(rows) == 1740
    annotated = Counter(skill for row in rows for skill in row.skills)
    assert set(annotated) == set(SKILLS)
    pool = scripted_pool({"judge": Clerk(best=5)})
    judge = SkillJudge(pool=pool, agent="judge")
    answers = {row.id: "?" if n % 10 == 0 else "1234" for n, row in enumerate(rows)}
    run = grade_all(judge, rows, answers, num_threads=2)
    unread = Counter(skill for row in rows[::10] for skill in row.skills)
    assert run.counts == {skill: n - unread[skill] for skill, n in annotated.items()}
    assert set(run.means.values()) == {4.0}
    assert (run.report.judged, run.report.unparsable) == (1740 - 174, 174)
    spent = pool.calls.ledger.spending
    # A request that was sent before, word for word, is not sent again.
    assert spent.made + spent.reused == sum(annotated.values())
