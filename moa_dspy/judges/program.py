"""The base of judges that ask a model: a DSPy program whose model is bound at each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.calls.scope import call_scope, current_scope
from moa_dspy.errors import MoaError, PoolError
from moa_dspy.judges.base import Exclusion, JudgeOutcome, JudgeReport, OutcomeCounter
from moa_dspy.pool import Pool

N_ALTERNATIVES = 5
"""Alternatives asked for per token, as many as AlpacaEval 2 asks for."""

_REFUSALS = ("UnsupportedFeatureError:", "InvalidRequestError:")


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's outputs by name, or why there are none."""

    values: Mapping[str, Any]
    logprobs: Any = None
    excluded: Exclusion | None = None
    reason: str = ""


class JudgeProgram(dspy.Module):
    """A judge that asks a model: a DSPy program to optimise, save, store and replay.

    The model is bound at each call, so no copy, reset or load can lose it; its temperature and
    ``max_tokens`` are those of the agent (8 tokens are enough where only a verdict is asked for).

    Args:
        pool: Where ``agent`` becomes an LM whose calls are stored.
        agent: The name of the judge's model in the pool.
        lm: Instead of both: an LM as it is.
        adapter: A DSPy adapter; None is plain chat, which wants one output.

    Raises:
        PoolError: Both or neither of ``lm`` and ``pool`` with ``agent``, or no such agent.
    """

    def __init__(
        self,
        *,
        pool: Pool | None = None,
        agent: str | None = None,
        lm: dspy.LM | None = None,
        adapter: Any = None,
    ) -> None:
        super().__init__()
        self.pool, self.agent = _seat(pool, agent, lm)
        self.adapter = adapter or PlainChat()
        self.counter = OutcomeCounter()

    def report(self) -> JudgeReport:
        """Return the counts of every comparison of this judge and its copies."""
        return self.counter.report

    def ask(self, predictor: Any, inputs: Mapping[str, str], *, weighted: bool = False) -> Reply:
        """Ask the judge's model once; what the model does wrong is a reply too.

        Args:
            predictor: One of this judge's modules.
            inputs: Its inputs, guarded.
            weighted: Ask for log-probabilities too, and once more without if that is refused.

        Raises:
            MoaError: If the reason for no reply is not the model: budget, replay, store, pool.
        """
        config = {"logprobs": True, "top_logprobs": N_ALTERNATIVES} if weighted else {}
        lm = self.pool.lm(self.agent)
        # Sample 0: a judge is not part of what it judges, which may be one of several samples.
        outer = current_scope()
        with call_scope(sample=0) as scope, dspy.context(lm=lm, adapter=self.adapter):
            try:
                prediction = predictor(**inputs, config=config)
            except Exception as error:
                raise_if_ours(error)
                if weighted and _refuses(error):
                    return self.ask(predictor, inputs)
                is_unread = isinstance(error, dspy.AdapterParseError)
                why = f"{type(error).__name__}: {error}"
                return Reply({}, excluded="unparsable" if is_unread else "failed", reason=why)
            finally:
                # What surrounds the judge counts what it cost.
                outer.log.extend(scope.log)
        values = {name: prediction[name] for name in prediction.keys()}  # noqa: SIM118  # no dict
        return Reply(values, values.pop("logprobs", None), reason=str(values.get("reasoning", "")))

    def count(self, outcome: JudgeOutcome) -> None:
        """Add one outcome to the report."""
        self.counter.add(outcome)


def raise_if_ours(error: BaseException, *, but: tuple[type[MoaError], ...] = ()) -> None:
    """Raise the ``MoaError`` that DSPy may have wrapped in ``error``: it is no model's failure."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MoaError) and not isinstance(cause, but):
            raise cause
        cause = cause.__cause__


def _refuses(error: Exception) -> bool:
    """Tell whether an endpoint refused the request as such; a stored refusal has only its text."""
    if isinstance(error, dspy.ContextWindowExceededError):
        return False
    if isinstance(error, (dspy.LMUnsupportedFeatureError, dspy.LMInvalidRequestError)):
        return True
    return isinstance(error, dspy.LMProviderError) and any(r in str(error) for r in _REFUSALS)


def _seat(pool: Pool | None, agent: str | None, lm: dspy.LM | None) -> tuple[Pool, str]:
    if lm is not None and pool is None and agent is None:
        return Pool.from_lms({"judge": lm}), "judge"
    if lm is None and pool is not None and agent is not None:
        return pool, pool[agent].name
    given = [n for n, v in (("pool", pool), ("agent", agent), ("lm", lm)) if v is not None]
    raise PoolError(
        "A judge needs either `lm`, or `pool` and `agent`, "
        f"but got {' and '.join(given) or 'none of them'}."
    )
