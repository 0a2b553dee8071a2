"""The prompt of who reads the references, optimised over stored ones and accepted by a test."""

from moa_dspy.optimize.prompts._book import BookEntry, PromptBook
from moa_dspy.optimize.prompts._candidates import Candidate
from moa_dspy.optimize.prompts._demos import ReferenceDemos, demos_from_references
from moa_dspy.optimize.prompts._feedback import ReferenceFeedback
from moa_dspy.optimize.prompts._guard import Comparison
from moa_dspy.optimize.prompts._guarded import (
    PromptVerdict,
    guarded,
    prompts_to_json,
    without_prompts,
)
from moa_dspy.optimize.prompts._joint import JointSearch, with_prompts
from moa_dspy.optimize.prompts._named import OPTIMIZERS
from moa_dspy.optimize.prompts._optimize import optimize_aggregator
from moa_dspy.optimize.prompts._options import PromptOptions
from moa_dspy.optimize.prompts._prompt import PredictorPrompt, Prompt, prompt_diff
from moa_dspy.optimize.prompts._report import PromptReport
from moa_dspy.optimize.prompts._result import Origin, PromptResult
from moa_dspy.optimize.prompts._rounds import PromptRounds
from moa_dspy.optimize.prompts._table import PromptsTable
from moa_dspy.optimize.prompts._tally import Counted
from moa_dspy.optimize.prompts._try import TryPrompts

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
