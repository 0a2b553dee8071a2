"""Judges, one class per source of verdicts about the better of two answers.

Every judge returns preferences in [0, 1] (1 = the candidate is preferred) and counts the examples
that it could not judge, which never count as losses. ``judge_all`` returns the input of
``moa_dspy.winrate``.
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
"""Judges that ask a model, by name; a new judge is registered by a line here."""
