"""Choose which model sits in which layer. The only room that imports Optuna."""

from moa_dspy.optimize.context import StageCounts
from moa_dspy.optimize.measure import Measurer
from moa_dspy.optimize.objectives import OBJECTIVES, Objective
from moa_dspy.optimize.outcome import Outcome
from moa_dspy.optimize.progress import Snapshot, Watcher
from moa_dspy.optimize.prompts import (
    Prompt,
    PromptOptions,
    PromptReport,
    PromptResult,
    ReferenceDemos,
    ReferenceFeedback,
    TryPrompts,
    demos_from_references,
    optimize_aggregator,
)
from moa_dspy.optimize.result import Row, StudyResult, TrialRecord
from moa_dspy.optimize.run import run_study
from moa_dspy.optimize.search import ModelSearch
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space import SearchSpace, providers_of

__all__ = [
    "OBJECTIVES",
    "Limits",
    "Measurer",
    "ModelSearch",
    "Objective",
    "Outcome",
    "Prompt",
    "PromptOptions",
    "PromptReport",
    "PromptResult",
    "ReferenceDemos",
    "ReferenceFeedback",
    "Row",
    "SearchSpace",
    "Snapshot",
    "StageCounts",
    "StudyResult",
    "TrialRecord",
    "TryPrompts",
    "Watcher",
    "demos_from_references",
    "optimize_aggregator",
    "providers_of",
    "run_study",
]
