"""The search for the best architecture of a pool. The only room that imports Optuna."""

from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.judge_facts import JudgeFacts
from moa_dspy.optimize.metric import JudgeOptions, Outcome
from moa_dspy.optimize.objectives import OBJECTIVES, Objective
from moa_dspy.optimize.progress import Snapshot
from moa_dspy.optimize.prompts.builtin import ReferenceDemos, TryPrompts
from moa_dspy.optimize.prompts.feedback import ReferenceFeedback
from moa_dspy.optimize.prompts.optimize import (
    PromptReport,
    PromptResult,
    optimize_aggregator,
)
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.prompts.prompt import Prompt
from moa_dspy.optimize.result import StudyResult, SystemScore, TrialRecord
from moa_dspy.optimize.run import run_study
from moa_dspy.optimize.sampler import PerformanceDiversitySampler
from moa_dspy.optimize.search import ModelSearch
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.programs import ProgramArchitecture, ProgramSpace
from moa_dspy.optimize.space.rules import providers_of
from moa_dspy.optimize.space.space import SearchSpace

__all__ = [
    "OBJECTIVES",
    "Evaluator",
    "JudgeFacts",
    "JudgeOptions",
    "Limits",
    "ModelSearch",
    "Objective",
    "Outcome",
    "PerformanceDiversitySampler",
    "ProgramArchitecture",
    "ProgramSpace",
    "Prompt",
    "PromptOptions",
    "PromptReport",
    "PromptResult",
    "ReferenceDemos",
    "ReferenceFeedback",
    "SearchSpace",
    "Snapshot",
    "StudyResult",
    "SystemScore",
    "TrialRecord",
    "TryPrompts",
    "optimize_aggregator",
    "providers_of",
    "run_study",
]
