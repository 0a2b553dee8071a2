"""Who answered better, example by example: one class per source of verdicts.

Every judge gives preferences in [0, 1] (1 = the candidate is preferred) and counts what it could
not judge, which is never a loss. ``judge_all`` feeds ``moa_dspy.winrate``.
"""

from moa_dspy.judges._grade import GradeJudge
from moa_dspy.judges._graded import Grader
from moa_dspy.judges._loop import Answers, grade_all, judge_all
from moa_dspy.judges._metric import MetricJudge
from moa_dspy.judges._outcome import Graded, Judgement, JudgeReport, Outcome
from moa_dspy.judges._pair import PairJudge
from moa_dspy.judges._program import Judge, JudgeProgram
from moa_dspy.judges._recorded import RecordedJudge
from moa_dspy.judges._runs import GradeRun, JudgeRun
from moa_dspy.judges._skill import SkillJudge
from moa_dspy.judges.signatures import SKILLS

JUDGES: dict[str, type[JudgeProgram]] = {
    "grade": GradeJudge,
    "pair": PairJudge,
    "skill": SkillJudge,
}
"""Judges that ask a model, by name. Adding a line here is the registration."""

__all__ = [
    "JUDGES",
    "SKILLS",
    "Answers",
    "GradeJudge",
    "GradeRun",
    "Graded",
    "Grader",
    "Judge",
    "JudgeProgram",
    "JudgeReport",
    "JudgeRun",
    "Judgement",
    "MetricJudge",
    "Outcome",
    "PairJudge",
    "RecordedJudge",
    "SkillJudge",
    "grade_all",
    "judge_all",
]
