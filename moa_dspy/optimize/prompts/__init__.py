"""The prompt of who reads the references, optimised over stored ones and accepted by a test."""

from moa_dspy.optimize.prompts._candidates import Candidate
from moa_dspy.optimize.prompts._demos import ReferenceDemos, demos_from_references
from moa_dspy.optimize.prompts._feedback import ReferenceFeedback
from moa_dspy.optimize.prompts._guard import Comparison
from moa_dspy.optimize.prompts._optimize import optimize_aggregator
from moa_dspy.optimize.prompts._prompt import PredictorPrompt, Prompt, prompt_diff
from moa_dspy.optimize.prompts._report import PromptReport
from moa_dspy.optimize.prompts._result import Origin, PromptResult
from moa_dspy.optimize.prompts._tally import Counted
from moa_dspy.optimize.prompts._try import TryPrompts

__all__ = [
    "Candidate",
    "Comparison",
    "Counted",
    "Origin",
    "PredictorPrompt",
    "Prompt",
    "PromptReport",
    "PromptResult",
    "ReferenceDemos",
    "ReferenceFeedback",
    "TryPrompts",
    "demos_from_references",
    "optimize_aggregator",
    "prompt_diff",
]
