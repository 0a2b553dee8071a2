"""Judges: one class per source of verdicts on which of two answers is better.

Every judge gives preferences in [0, 1] (1 = the candidate is preferred) and counts what it could
not judge, which is never a loss. ``judge_all`` feeds ``moa_dspy.winrate``.
"""

from moa_dspy.judges.base import Grades, Judge, Judgement, JudgeOutcome, JudgeReport, MetricJudge
from moa_dspy.judges.graded import GradeJudge, Grader, SkillJudge
from moa_dspy.judges.pairwise import PairJudge
from moa_dspy.judges.program import SKILLS, JudgeProgram
from moa_dspy.judges.run import (
    Answers,
    GradeRun,
    JudgeRun,
    Jury,
    RecordedJudge,
    RecordedPairs,
    grade_all,
    judge_all,
)

__all__ = [
    "JUDGES",
    "SKILLS",
    "Answers",
    "GradeJudge",
    "GradeRun",
    "Grader",
    "Grades",
    "Judge",
    "JudgeOutcome",
    "JudgeProgram",
    "JudgeReport",
    "JudgeRun",
    "Judgement",
    "Jury",
    "MetricJudge",
    "PairJudge",
    "RecordedJudge",
    "RecordedPairs",
    "SkillJudge",
    "grade_all",
    "judge_all",
]


JUDGES: dict[str, type[JudgeProgram]] = {
    "grade": GradeJudge,
    "pair": PairJudge,
    "skill": SkillJudge,
}
"""Judges that ask a model, by name. Adding a line here is the registration."""
