"""The aggregator's prompt, optimised over stored references and accepted by a test."""

from moa_dspy.optimize.prompts.builtin import (
    OPTIMIZERS,
    ReferenceDemos,
    TryPrompts,
)
from moa_dspy.optimize.prompts.feedback import ReferenceFeedback
from moa_dspy.optimize.prompts.joint import (
    JointSearch,
    PromptVerdict,
    with_prompts,
)
from moa_dspy.optimize.prompts.optimize import (
    PromptReport,
    PromptResult,
    optimize_aggregator,
)
from moa_dspy.optimize.prompts.options import PromptOptions
from moa_dspy.optimize.prompts.prompt import (
    Candidate,
    Prompt,
    PromptRegistry,
    prompt_diff,
)
from moa_dspy.optimize.prompts.tuning import Counted, PromptComparison

__all__ = [
    "OPTIMIZERS",
    "Candidate",
    "Counted",
    "JointSearch",
    "Prompt",
    "PromptComparison",
    "PromptOptions",
    "PromptRegistry",
    "PromptReport",
    "PromptResult",
    "PromptVerdict",
    "ReferenceDemos",
    "ReferenceFeedback",
    "TryPrompts",
    "optimize_aggregator",
    "prompt_diff",
    "with_prompts",
]
