"""Who proposes the next architecture: the response model, told what the single agents showed."""

from __future__ import annotations

from moa_dspy.optimize.context import SearchContext
from moa_dspy.optimize.front import names_of
from moa_dspy.optimize.known import Known
from moa_dspy.optimize.response import Kernels, Prices, Proposer, Traits


def proposer_of(context: SearchContext, known: Known) -> Proposer:
    """Return the proposer of a search; the paper's criteria are the kernels of its model."""
    traits = Traits(known.means, known.pair(context.diversity), context.space.prompts)
    prices = Prices(known.forecast, names_of(context.objectives), context.seed)
    kernels = Kernels.of(traits)
    return Proposer(context.space, kernels, known.settle, context.seed, prices.at)
