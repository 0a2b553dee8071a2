"""The check of a study before anything is paid: its cost by stage, and its smallest budget.

An unknown price or time is None, never 0.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Final

import dspy

from moa_dspy.adapters import PlainChat, speaking_adapter
from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import LIMITS, Budget, Ledger
from moa_dspy.data import Splits, accepted_answers, is_absent, plain_text
from moa_dspy.data.recorded import MEASURED
from moa_dspy.errors import LayerFailedError, MoaError, StudyError
from moa_dspy.layers import SEAT_MODULES
from moa_dspy.optimize.early_facts import Cost, StudyEstimate
from moa_dspy.optimize.evaluate import Student
from moa_dspy.optimize.forecast import StudyPlan
from moa_dspy.optimize.nodes import run_program
from moa_dspy.optimize.objectives import check_about_one_within
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.prompts.joint import with_prompts
from moa_dspy.optimize.shares import (
    AgentEstimate,
    cause_of,
    check_options,
    smallest_limit,
    sufficient,
)
from moa_dspy.optimize.singles import plan_of
from moa_dspy.optimize.space.programs import listed_notes, n_listed_untried
from moa_dspy.optimize.study import PreparedStudy
from moa_dspy.pool import Pool
from moa_dspy.prediction import Response
from moa_dspy.presets import TurnByTurn
from moa_dspy.references import TOKENS_PER_COUNTED, count_tokens, counted_rows
from moa_dspy.vendors import Price

LEVELS: Final = ("low", "likely", "high")
_SHORT_TOKENS: Final = 10
"""Length of a reply up to which right answers of different agents are assumed to be equal."""
_TOKENS_OF_A_FIELD: Final = 12
"""Tokens of the marks around an output in a reply of DSPy's chat format."""
_TOKENS_OF_REASONING: Final = 120


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """The expected cost of one stage of a study, as a range.

    Attributes:
        name: ``single agents``, ``search``, ``prompts``, ``random baseline``, ``test`` or ``all``.
        costs: Costs by level (low, likely, high); seconds are wall time.
    """

    name: str
    costs: Mapping[str, Cost]


@dataclass(frozen=True, slots=True)
class Preflight:
    """A study that was checked and not run.

    Attributes:
        name: Name of the study.
        n_rows: Number of rows by split.
        agents: Agents with their expected tokens.
        stages: Stages in the order in which they run, then their total.
        smallest: The smallest limit of each kind that reaches a verdict; unknown ones are absent.
        budget: Limits of the study.
        notes: Notes to read before money is spent.
        has_judge: Whether a model compares answers; its usd and seconds are not known in advance.
    """

    name: str
    n_rows: Mapping[str, int]
    agents: tuple[AgentEstimate, ...]
    stages: tuple[StageEstimate, ...]
    smallest: Mapping[str, float]
    budget: Budget
    notes: tuple[str, ...] = ()
    has_judge: bool = False

    @property
    def whole(self) -> StageEstimate:
        """All stages together; zero for a replay."""
        return [StageEstimate("all", dict.fromkeys(LEVELS, Cost())), *self.stages][-1]

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of the agents whose price is unknown, and of the judge, if a model judges."""
        names = tuple(agent.name for agent in self.agents if agent.price is None)
        return (*names, "the judge") if self.has_judge else names

    @property
    def is_timed(self) -> bool:
        """True if every agent was asked a question, so that the time can be estimated."""
        return not self.has_judge and all(agent.seconds is not None for agent in self.agents)

    @property
    def estimate(self) -> StudyEstimate:
        """The likely cost of the whole study, and the limit of the budget that ends it early."""
        likely = self.whole.costs["likely"]
        usd = None if self.unpriced else likely.usd
        estimate = StudyEstimate(likely.calls, usd, likely.seconds, tokens=likely.tokens)
        return estimate.within(self.budget)

    @property
    def most_usd(self) -> float | None:
        """The maximum cost of the study: the budget, or the upper end; None if unknown."""
        if self.budget.usd is not None:
            return min(self.budget.usd, self.whole.costs["high"].usd or self.budget.usd)
        return None if self.unpriced else self.whole.costs["high"].usd

    @property
    def too_small(self) -> dict[str, float]:
        """The smallest sufficient value of each limit of the budget that is too small."""
        limits = {name: getattr(self.budget, name) for name in self.smallest}
        return {n: value for n, value in self.smallest.items() if value > (limits[n] or math.inf)}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "rows": dict(self.n_rows),
            "agents": [
                {
                    "name": agent.name,
                    "price": None if agent.price is None else asdict(agent.price),
                    "prompt_tokens": dict(agent.prompt_tokens),
                    "reply_tokens": dict(agent.reply_tokens),
                    "seconds": agent.seconds,
                    "reply": agent.reply,
                    "failure": agent.failure,
                }
                for agent in self.agents
            ],
            "stages": {
                stage.name: {level: self._cost_json(stage.costs[level]) for level in LEVELS}
                for stage in (*self.stages[:-1], self.whole)
            },
            "smallest_budget": dict(self.smallest),
            "budget_allows": self._allowed(),
            "notes": list(self.notes),
        }

    def _allowed(self) -> dict[str, Any] | None:
        estimate = self.estimate
        if estimate.capped_by is None:
            return None
        return {"limit": estimate.capped_by, "value": estimate.ceiling, "share": estimate.share}

    def _cost_json(self, cost: Cost) -> dict[str, float | None]:
        return {
            "calls": round(cost.calls),
            "tokens": round(cost.tokens),
            "usd": None if self.unpriced else cost.usd,
            "seconds": cost.seconds if self.is_timed else None,
        }


def check_before(prepared: PreparedStudy, *, asks: bool = False) -> Preflight:
    """Estimate the cost of a study, without writing anything.

    Args:
        prepared: The study, which is checked already.
        asks: Whether each agent is asked one question; only these calls cost anything.

    Raises:
        StudyError: If the search would refuse its options, or no agent can stay within the limits.
    """
    pool = prepared.make_pool(None, Ledger())
    whole = Student.of(prepared.study.make_student(pool))
    options, _ = with_prompts(
        prepared.study.make_search(pool, prepared.metric).options, whole, prepared.splits.train
    )
    check_options(options, prepared.study.budget)
    # All agents have the same adapter, so the tokens of the rows are counted once.
    counted = counted_rows(prepared.splits.val)
    tokens = fmean(_prompt_tokens(prepared, whole, counted)), fmean(_answer_tokens(prepared))
    agents = tuple(
        _estimate(prepared, options, name, whole.mixture, *tokens) for name in options.space.agents
    )
    is_paid = not prepared.study.calls.replay_only
    if asks and is_paid:
        inputs = _mixture_inputs(prepared, whole.program, prepared.splits.val[0])[0]
        n_counted = next(_prompt_tokens(prepared, whole, prepared.splits.val))
        agents = tuple(_probed(agent, whole, inputs, n_counted) for agent in agents)
    if is_paid and prepared.study.task.program is None:
        check_about_one_within(options.limits, {agent.name: agent.cost("low") for agent in agents})
    judging = Cost(calls=_n_calls_of_judge(prepared))
    n_trials, n_untried = options.n_trials, n_listed_untried(options.space, pool, options.n_trials)
    listed = listed_notes(options.space, n_untried, n_trials)
    preflight = Preflight(
        name=prepared.study.name,
        n_rows={name: len(getattr(prepared.splits, name)) for name in ("train", "val", "test")},
        agents=agents,
        stages=stages_before(options, prepared.splits, agents, judging) if is_paid else (),
        smallest={},
        budget=prepared.study.budget,
        notes=(*options.notes, *listed, *prepared.notes, *_notes(prepared, pool, whole, agents)),
        has_judge=judging.calls > 0,
    )
    return replace(preflight, smallest=_smallest(prepared, options, preflight))


def _estimate(
    prepared: PreparedStudy,
    options: SearchOptions,
    name: str,
    student: Any,
    prompt: float,
    reply: float,
) -> AgentEstimate:
    if prepared.recorded is not None:  # no answer of a table is paid for
        return AgentEstimate(name, Price(0.0, 0.0, "table"), {}, {})
    most = float(options.pool[name].max_tokens)
    n_outputs = len(student.signature.output_fields)
    is_plain = isinstance(speaking_adapter(student.rules.adapter), PlainChat)
    extra = 0.0 if is_plain else float(_TOKENS_OF_A_FIELD * (n_outputs + 1))
    extra += _TOKENS_OF_REASONING if prepared.study.task.module == "chain_of_thought" else 0.0
    replies = {
        "low": min(most, 1 + reply * TOKENS_PER_COUNTED["low"]),
        # Models write a little more than the right answer.
        "likely": min(most, 2 + 1.5 * reply * TOKENS_PER_COUNTED["likely"] + extra),
        "high": most,
    }
    prompts = {level: prompt * factor for level, factor in TOKENS_PER_COUNTED.items()}
    return AgentEstimate(name, options.pool.price(name), prompts, replies, turns=_n_turns(prepared))


def _counted(prepared: PreparedStudy) -> Sequence[dspy.Example]:
    return counted_rows((*prepared.splits.val, *prepared.splits.test))


def _prompt_tokens(
    prepared: PreparedStudy, student: Student, rows: Iterable[dspy.Example]
) -> Iterator[int]:
    """Yield the tokens of the prompt of each row, as the adapter would send it."""
    task = prepared.study.task
    adapter = speaking_adapter(student.mixture.rules.adapter)
    # A row has the inputs of the whole program, if there is one.
    own = prepared.study.signature if task.program is not None else student.mixture.signature
    seat: Any = SEAT_MODULES[task.module](own)
    signature = seat.predictors()[0].signature
    for row in rows:
        for inputs in _mixture_inputs(prepared, student.program, row):
            messages = adapter.format(signature, [], inputs)
            yield sum(count_tokens(_text_of(message["content"])) + 4 for message in messages)


def _n_turns(prepared: PreparedStudy) -> float:
    """Return how often the mixture is called for a row on average: once, or for each turn."""
    turns = prepared.study.task.turns
    return 1.0 if turns is None else fmean(len(row[turns]) for row in _counted(prepared))


def _mixture_inputs(
    prepared: PreparedStudy, program: Any, row: dspy.Example
) -> list[dict[str, Any]]:
    """Return the inputs of the mixture for a row: one, or one per turn of a conversation."""
    turns = prepared.study.task.turns
    inputs: list[dict[str, Any]] = [dict(row.inputs())]
    return inputs if turns is None else program.inputs_of(row[turns])


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


def _answer_tokens(prepared: PreparedStudy) -> Iterator[int]:
    """Yield the tokens of the right answers of each counted row; 30 if they are unknown."""
    for row in _counted(prepared):
        held = [row.get(name, None) for name in prepared.study.signature.output_fields]
        held = [value for value in held if not is_absent(value)]
        texts = [plain_text(accepted_answers(value)[0]) for value in held if _is_answer(value)]
        yield sum(map(count_tokens, texts)) if texts else 30


def _is_answer(value: Any) -> bool:
    try:
        return bool(accepted_answers(value))
    except MoaError:
        return False


class _Recorded(dspy.Module):
    """A mixture in a program, and its last prediction."""

    def __init__(self, mixture: Any) -> None:
        super().__init__()
        self.mixture, self.prediction = mixture, None

    def forward(self, **inputs: Any) -> Any:
        self.prediction = self.mixture(**inputs)
        return self.prediction

    async def aforward(self, **inputs: Any) -> Any:
        return await asyncio.to_thread(self, **inputs)


def _probed(
    agent: AgentEstimate, student: Student, inputs: Mapping[str, Any], n_counted: int
) -> AgentEstimate:
    """Ask an agent one question (the first of a conversation), and estimate from its tokens.

    Args:
        agent: Estimate from the rows alone.
        student: The program.
        inputs: Inputs of the question.
        n_counted: Tokens of its prompt by ``count_tokens``.
    """
    recorded = _Recorded(student.mixture.with_architecture(Architecture.single(agent.name)))
    by_turn = isinstance(student.program, TurnByTurn)
    try:
        run_program(recorded if by_turn else student.with_module(recorded), inputs)
    except (LayerFailedError, MoaError) as error:
        cause = cause_of(" ".join(str(error).split()), agent.name)
        return replace(agent, failure=cause[:300])
    except Exception as error:
        if by_turn or student.program is student.mixture:
            raise
        raise StudyError(f"`task.program` raised {type(error).__name__}: {error}") from error
    if recorded.prediction is None:
        raise StudyError("`task.program` answered a row without calling its `task.predictor`.")
    (response,) = recorded.prediction.mixture.responses
    text = " ".join(response.text.split())[:80]
    estimate = replace(agent, seconds=response.seconds, reply=text)
    if not response.prompt_tokens or not response.completion_tokens:
        return estimate
    return with_tokens(estimate, response, n_counted)


def with_tokens(agent: AgentEstimate, response: Response, n_counted: int) -> AgentEstimate:
    """Return the estimate with the tokens of one response, whose prompt has ``n_counted``."""
    # Rows differ: one answer predicts the length of the others within a factor of two.
    most = agent.reply_tokens["high"]
    replies = {
        level: min(most, response.completion_tokens * factor)
        for level, factor in (("low", 0.5), ("likely", 1.0), ("high", 2.0))
    }
    prompts = {"low": 0.9, "likely": 1.0, "high": 1.1}
    # Prompts differ from this row's by the difference of the counted tokens.
    usual = agent.prompt_tokens["likely"] - n_counted * TOKENS_PER_COUNTED["likely"]
    billed = max(1.0, response.prompt_tokens + usual)
    return replace(
        agent,
        prompt_tokens={level: billed * factor for level, factor in prompts.items()},
        reply_tokens=replies,
    )


def stages_before(
    options: SearchOptions, splits: Splits, agents: Sequence[AgentEstimate], judging: Cost
) -> tuple[StageEstimate, ...]:
    """Return the cost of each stage, and of all, before the agents are measured.

    Args:
        options: Options of the search.
        splits: The rows.
        agents: What is known of each agent.
        judging: Cost of one comparison of two answers; 0 calls without a judge.
    """
    levels: dict[str, dict[str, Cost]] = {}
    costs = {level: {a.name: a.costs(level, options.pool) for a in agents} for level in LEVELS}
    replies = fmean(agent.reply_tokens["likely"] for agent in agents)

    def planned(ranking: Sequence[str]) -> StudyPlan:
        return plan_of(
            options,
            options.space,
            splits,
            costs["likely"],
            n_val=len(splits.val),
            ranking=ranking,
            may_vote="vote" in options.space.combines and options.space.searches_layers,
            judged=judging if judging.calls else None,
            has_short_answers=replies <= _SHORT_TOKENS,
        )

    likely = replace(planned(options.space.agents), ranked=planned)
    for place, level in enumerate(LEVELS):
        for name, ends in likely.with_costs(costs[level]).stages().items():
            levels.setdefault(name, {})[level] = ends[place]
    return tuple(StageEstimate(name, ends) for name, ends in levels.items())


def _n_calls_of_judge(prepared: PreparedStudy) -> float:
    """Return the calls of one comparison of two answers; 0 without a judge that is asked."""
    judge = prepared.study.judge
    if judge is None or judge.agent is None:
        return 0.0
    return _n_turns(prepared) * (2.0 if judge.orders == "both" else 1.0)


def _smallest(
    prepared: PreparedStudy, options: SearchOptions, preflight: Preflight
) -> dict[str, float]:
    """Return the smallest limit of each kind, from likely costs; calls are exact."""
    if not preflight.stages:
        return {}
    n_val = {agent.name: len(prepared.splits.val) for agent in preflight.agents}
    n_test = {agent.name: len(prepared.splits.test) for agent in preflight.agents}
    unknown = {"usd": bool(preflight.unpriced), "seconds": not preflight.is_timed}
    smallest = {}
    for name in LIMITS:
        costs = {agent.name: getattr(agent.cost("likely"), name) for agent in preflight.agents}
        if not unknown.get(name) and any(costs.values()):
            smallest[name] = sufficient(name, smallest_limit(options, name, costs, n_val, n_test))
    return smallest


def _table_notes(recorded: Any) -> Iterator[str]:
    known = ", ".join(cost for cost in MEASURED if recorded.knows(cost))
    yield f"Costs that the table has for every answer: {known or 'none'}."
    blank = {name: [*texts.values()].count(None) for name, texts in recorded.responses.items()}
    if shown := ", ".join(f"{name} {n:,}" for name, n in blank.items() if n):
        yield f"Questions without an answer, which score 0: {shown} of {len(recorded.questions):,}."


def _notes(
    prepared: PreparedStudy, pool: Pool, student: Student, agents: Sequence[AgentEstimate]
) -> Iterator[str]:
    yield from prepared.program_notes(student.program)
    if prepared.study.calls.replay_only:
        yield "This is a replay of recorded answers: it makes no call and costs nothing."
    yield from _table_notes(prepared.recorded) if prepared.recorded is not None else ()
    yield from prepared.rows_notes()
    is_plain = isinstance(speaking_adapter(student.mixture.rules.adapter), PlainChat)
    if (small := [name for name in pool if pool[name].is_local]) and not is_plain:
        yield (
            f"{', '.join(small)}: small models often break DSPy's reply formats; with one text "
            'output, `task.adapter = "plain"` needs no format.'
        )
    unread = [a.name for a in agents if a.failure and "arse" in a.failure]
    if unread and not is_plain:
        yield (
            f"The reply of {', '.join(unread)} could not be read: try `task.adapter = "
            '"plain"` (one text output) or "json".'
        )
