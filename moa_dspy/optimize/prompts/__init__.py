"""The prompt of who reads the references, optimised over stored ones and accepted by a test."""

from moa_dspy.optimize.prompts.builtin import (
    OPTIMIZERS,
    ReferenceDemos,
    TryPrompts,
    demos_from_references,
)
from moa_dspy.optimize.prompts.feedback import ReferenceFeedback
from moa_dspy.optimize.prompts.joint import (
    JointSearch,
    PromptRounds,
    PromptVerdict,
    guarded,
    prompts_to_json,
    with_prompts,
    without_prompts,
)
from moa_dspy.optimize.prompts.optimize import PromptReport, optimize_aggregator
from moa_dspy.optimize.prompts.optimizers import Candidate
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.prompts.prompt import (
    BookEntry,
    PredictorPrompt,
    Prompt,
    PromptBook,
    prompt_diff,
)
from moa_dspy.optimize.prompts.references import Counted
from moa_dspy.optimize.prompts.tuning import Comparison, Origin, PromptResult
from moa_dspy.optimize.study_file import PromptsTable

__all__ = [
    "OPTIMIZERS",
    "BookEntry",
    "Candidate",
    "Comparison",
    "Counted",
    "JointSearch",
    "Origin",
    "PredictorPrompt",
    "Prompt",
    "PromptBook",
    "PromptOptions",
    "PromptReport",
    "PromptResult",
    "PromptRounds",
    "PromptVerdict",
    "PromptsTable",
    "ReferenceDemos",
    "ReferenceFeedback",
    "TryPrompts",
    "demos_from_references",
    "guarded",
    "optimize_aggregator",
    "prompt_diff",
    "prompts_to_json",
    "with_prompts",
    "without_prompts",
]
