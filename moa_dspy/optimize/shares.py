"""The first question to every agent, the shares of a budget by stage, and the smallest budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations, islice
from math import ceil, floor, log10
from typing import Final

import dspy
import optuna

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import LIMITS, Budget, Ledger, spending_under
from moa_dspy.data import Splits, is_pure
from moa_dspy.errors import BudgetReachedError, PoolError, StudyError
from moa_dspy.files import shown_value
from moa_dspy.optimize.early_facts import AgentCosts, Cost
from moa_dspy.optimize.evaluate import Evaluator, Student
from moa_dspy.optimize.judging import Judging
from moa_dspy.optimize.metric import Outcome, check_metric
from moa_dspy.optimize.objectives import UsdObjective, check_about_one_within
from moa_dspy.optimize.options import SearchOptions
from moa_dspy.optimize.progress import Progress, StageWork
from moa_dspy.optimize.space.programs import baseline_architectures, in_every_mixture
from moa_dspy.optimize.storage import make_study
from moa_dspy.pool import Pool
from moa_dspy.vendors import Price

_OF_ONE_ANSWER: Final = {"low": 2 / 3, "likely": 1.0, "high": 1.5}
"""Seconds of other answers, as a multiple of those of one: 17 live studies, one processor."""
N_PROBED: Final = 3
"""Questions that an agent may fail at the start: one may be too long for it, or be filtered."""


@dataclass(frozen=True, slots=True)
class AgentEstimate:
    """The expected tokens, price and time of one question to one agent.

    Attributes:
        name: Name of the agent.
        price: None is unknown.
        prompt_tokens, reply_tokens: Low, likely, high; empty if its answers are those of a table.
        seconds: As measured by a probe; None without one.
        reply: What it answered to a probe, shortened; None without one.
        failure: Why it did not answer the probe.
        turns: Requests per answer.
    """

    name: str
    price: Price | None
    prompt_tokens: Mapping[str, float]
    reply_tokens: Mapping[str, float]
    seconds: float | None = None
    reply: str | None = None
    failure: str | None = None
    turns: float = 1.0

    def cost(self, level: str) -> Cost:
        """Return the cost of a question; usd and seconds are 0 where they are unknown."""
        prompt, reply = self.prompt_tokens[level], self.reply_tokens[level]
        usd = self.price.usd(round(prompt), round(reply)) if self.price else 0.0
        seconds = (self.seconds or 0.0) * _OF_ONE_ANSWER[level]
        return Cost(1.0, prompt + reply, usd, seconds) * self.turns

    def costs(self, level: str, pool: Pool) -> AgentCosts:
        """Return the cost of a question, and of what the agent reads and writes besides."""
        price, agent, reply = self.price, pool[self.name], self.reply_tokens[level]
        per_token = (price.usd(1, 0), price.usd(0, 1)) if price else (0.0, 0.0)
        return AgentCosts(
            self.cost(level),
            reply * self.turns,
            reply,
            *per_token,
            is_greedy=agent.temperature == 0,
            # A processor answers several questions hardly faster than one after the other.
            max_concurrent=1 if agent.is_local else agent.max_concurrent,
            is_local=agent.is_local,
            processor_share=agent.processor_share,
        )


def probe(
    options: SearchOptions,
    evaluator: Evaluator,
    rows: Sequence[dspy.Example],
    progress: Progress,
) -> dict[str, Outcome]:
    """Return the outcome of a question to each agent: a dead one, or a broken metric, ends here.

    An agent that fails on the first row is asked the next, up to three. A replay pays nothing for
    an agent that never answers, so there its failures are measured as any others.

    Raises:
        PoolError: If an agent answers none, before the next one is asked.
        StudyError: If the budget ends here.
    """
    answered, names = {}, options.space.agents
    for name in names:
        progress.show("probe", current=name, work=StageWork(len(names)))
        failures = []
        for row in rows[:N_PROBED]:
            try:
                (outcome,) = evaluator.measure(Architecture.single(name), [row])
            except BudgetReachedError as error:
                raise StudyError(
                    f"{error} It is too small to ask each of the {len(names)} agents one "
                    "question; allow more."
                ) from error
            if outcome.failure is None or options.pool.calls.replay_only:
                answered[name] = outcome
                break
            failures.append(outcome.failure)
        else:
            raise PoolError(f"Agent {name!r} does not answer: {cause_of(failures[0], name)}")
    return answered


def cause_of(failure: str, name: str) -> str:
    """Return why an agent did not answer, without what is said of a mixture of it alone."""
    return failure.partition(f" agents answered. {name}: ")[2] or failure


def probe_judge(
    judging: Judging, options: SearchOptions, evaluator: Evaluator, rows: Sequence[dspy.Example]
) -> Cost:
    """Return the cost of one comparison, from the first that is made; 0 where none had to be.

    Raises:
        PoolError: If the judge's model answers none of the first three comparisons.
    """
    failures = []
    for row in rows[:N_PROBED]:
        for agent, other in islice(combinations(options.space.agents, 2), N_PROBED):
            before = judging.spent
            singles = Architecture.single(agent), Architecture.single(other)
            judgement = evaluator.compare(*singles, [row])[0]
            if judgement.excluded == "failed":
                failures.append(judgement.reason)
                break
            if judging.spent.calls > before.calls:
                return judging.spent + before * -1
    if failures:
        raise PoolError(f"The judge ({judging.options.label}) does not answer: {failures[0]}")
    return Cost()


@dataclass(frozen=True, slots=True)
class BudgetShares:
    """Shares of one budget by stage, so that what comes later finds its part.

    Attributes:
        budget: The limits.
        outcomes: Outcomes of each agent alone on val.
        n_test: Test rows.
        num_threads: Examples measured at the same time; it scales wall time.
        random_share: Kept for the random baseline.
        judged: Cost of one comparison by the judge; None without one.
    """

    budget: Budget
    outcomes: Mapping[str, Sequence[Outcome]]
    n_test: int
    num_threads: int
    random_share: float
    judged: Cost | None = None

    def of_search(self, possible_calls: Iterable[float], *, part: float = 1.0) -> float:
        """Return the share that the trials may use.

        Args:
            possible_calls: Calls per row of each architecture that may become the pick.
            part: Part of the search's share that may be used before prompts are tuned further.
        """
        kept = test_share(
            self.budget,
            self.outcomes,
            n_test=self.n_test,
            num_threads=self.num_threads,
            possible_calls=possible_calls,
            judged=self.judged,
        )
        return max(0.0, 1 - self.random_share - kept) * part


def test_share(
    budget: Budget,
    outcomes: Mapping[str, Sequence[Outcome]],
    *,
    n_test: int,
    num_threads: int,
    possible_calls: Iterable[float],
    judged: Cost | None = None,  # noqa: PT028  # no test, by name only
) -> float:
    """Return the share of the budget that the test needs, in [0, 1].

    On every test row the best single agent and the pick are asked, then, as far as it
    goes, all agents and the fixed baselines. It is computed from what single agents cost
    in production terms: stored answers on val say nothing about the test. The arguments are those
    of ``BudgetShares`` and its ``of_search``.
    """
    measured = [outcome for several in outcomes.values() for outcome in several]
    n_asked = max(sum(outcome.calls for outcome in measured), 1)
    needed = n_test * max(1.5 * len(outcomes), 1 + max(possible_calls, default=0))
    per_call = {
        "calls": 1.0,
        "tokens": sum(outcome.tokens for outcome in measured) / n_asked,
        "usd": sum(outcome.usd for outcome in measured) / n_asked,
        "seconds": sum(outcome.seconds for outcome in measured) / n_asked / num_threads,
    }
    # Each agent, the pick, three baselines, and the pick against the best single agent.
    judging = (judged or Cost()) * (n_test * (len(outcomes) + 5))
    judging = replace(judging, seconds=judging.seconds / num_threads)
    shares = [
        (needed * cost + getattr(judging, name)) / limit
        for name, cost in per_call.items()
        if (limit := getattr(budget, name)) is not None
    ]
    return min(1.0, max(shares, default=0.0))


def check_by_probe(
    options: SearchOptions,
    evaluator: Evaluator,
    splits: Splits,
    progress: Progress,
    judging: Judging | None,
) -> Cost | None:
    """Check options and budget by a question to each agent; raises as the single checks do.

    Returns:
        The cost of one comparison by the judge, if there is one.
    """
    check_options(options, progress.ledger.budget)
    mixture, metric = Student.of(evaluator.student).mixture, options.metric
    if (is_mixture := evaluator.student is mixture) and metric is not None and is_pure(metric):
        check_metric(metric, mixture.signature, splits)
    probed, judged = probe(options, evaluator, splits.val, progress), None
    # Other rows may take a program less. A replay is free.
    if is_mixture and not options.pool.calls.replay_only:
        check_about_one_within(options.limits, probed)
    if judging is not None:
        progress.show("probe", current=judging.options.label)
        judged = probe_judge(judging, options, evaluator, splits.val)
    charged = judged if judging is not None and judging.n_made > 0 else None
    check_budget(options, evaluator, splits, progress.ledger, probed, charged)
    return judged


N_TRIED: Final = 12
"""Trials before which Optuna's samplers draw at random, and two more."""


def check_options(options: SearchOptions, budget: Budget) -> None:
    """Refuse a sampler that cannot propose, and prices that are unknown, before anything is spent.

    Raises:
        StudyError: If a sampler is none or cannot, or what has no price is to be held to usd.
    """
    _check_sampler(options)
    _check_prices(options, budget)


def _check_sampler(options: SearchOptions) -> None:
    """Have a copy of Optuna's sampler propose: it may lack a package, or know only one goal."""
    sampler, space = options.sampler, options.space
    if sampler is not None and (isinstance(sampler, type) or not hasattr(sampler, "before_trial")):
        raise StudyError(
            "`sampler` must be a sampler of Optuna such as optuna.samplers.TPESampler(seed=0), but "
            f"got {shown_value(sampler)}."
        )
    if not type(sampler).__module__.startswith("optuna."):
        return  # code of the user's own may count, or ask a server
    if isinstance(sampler, optuna.samplers.BruteForceSampler):
        _check_baselines(options)
    study = make_study(options.objectives, seed=options.seed, sampler=deepcopy(sampler))
    try:
        for number in range(N_TRIED):
            trial = study.ask()
            space.suggest(trial)
            for name in ("rows", "score", "calls", "usd", "seconds"):
                trial.set_user_attr(name, 1.0)
            study.tell(trial, [number / N_TRIED] * len(options.objectives))
            if study.is_stopped:
                return
    except Exception as error:
        raise StudyError(
            f"`sampler`: {type(sampler).__name__} cannot be used in this search: {error}"
        ) from error


def _check_baselines(options: SearchOptions) -> None:
    """Refuse a tree of all choices where a baseline may be measured that is none of them."""
    space = options.space
    for best in space.agents:
        ranking = sorted(space.agents, key=lambda name: name != best)
        baselines = baseline_architectures(ranking, options.pool, space)
        for arch in in_every_mixture(baselines, space):
            if space.params(arch) is None:
                raise StudyError(
                    "`sampler`: BruteForceSampler cannot be used in this search, as it cannot "
                    f"record the baseline {arch}, which is not in the space. Without a `sampler`, "
                    "a small space is measured completely as well."
                )


def _check_prices(options: SearchOptions, budget: Budget) -> None:
    agents = [name for name in options.space.agents if name in options.pool.unpriced]
    unpriced = list(dict.fromkeys([*agents, *(options.judge.unpriced if options.judge else ())]))
    counted = {
        "budget.usd": budget.usd is not None,
        "limits.usd": options.limits.usd is not None,
        "objectives": any(isinstance(objective, UsdObjective) for objective in options.objectives),
    }
    wanting = [name for name, is_counted in counted.items() if is_counted]
    if unpriced and wanting:
        raise StudyError(
            f"`{wanting[0]}` counts usd, but the price of {', '.join(unpriced)} is unknown: give "
            "`usd_per_million_prompt_tokens` and `usd_per_million_completion_tokens` of each in "
            "the pool (0 if it is free)."
        )


def check_budget(
    options: SearchOptions,
    evaluator: Evaluator,
    splits: Splits,
    ledger: Ledger,
    probed: Mapping[str, Outcome],
    judged: Cost | None = None,
) -> None:
    """Raise an error for a budget that would end before there is a verdict, as far as is known.

    A verdict needs the single agents on val, and on test the best of them and the pick, which
    is at least a single agent or, where votes are tried, a vote of agents. Stored answers
    are free. Calls are counted; tokens, usd and seconds are estimated from one question.
    The stored answers of a larger program are known only by running it: if an answer of the probe
    was stored, nothing is checked, and else no other answer is taken as stored.

    Args:
        options: Options of the search.
        evaluator: Looks up which answers are stored.
        splits: The rows.
        ledger: The budget and what is spent of it.
        probed: One outcome of each agent.
        judged: Cost of one comparison by the judge that was made now: 0 where it was stored.

    Raises:
        StudyError: If a limit is too small, naming it and the smallest value that suffices.
    """
    is_larger = evaluator.student is not Student.of(evaluator.student).mixture
    is_free = ledger.budget == Budget() or options.pool.calls.replay_only
    if is_free or (is_larger and ledger.spending.reused):
        return
    # Calls of an LM that was not adopted are in no ledger.
    counted = [name for name in probed if name not in options.pool.not_adopted]
    n_val = dict.fromkeys(counted, len(splits.val) - 1)
    n_test = dict.fromkeys(counted, len(splits.test))
    if not is_larger:
        n_val = {name: _n_unknown(evaluator, ledger, name, splits.val) for name in counted}
        n_test = {name: _n_unknown(evaluator, ledger, name, splits.test) for name in counted}
    spent = ledger.backend.totals()
    judging = (judged or Cost()) * ((len(probed) - 1) * len(splits.val) + len(splits.test))
    for name in LIMITS:
        limit = getattr(ledger.budget, name)
        costs = {agent: getattr(outcome, name) for agent, outcome in probed.items()}
        needed = smallest_limit(options, name, costs, n_val, n_test, getattr(judging, name))
        smallest = getattr(spent, name) + needed
        if limit is not None and smallest > limit:
            raise _too_small(name, limit, smallest, n_agents=len(probed), splits=splits)


def _too_small(
    name: str, limit: float, smallest: float, *, n_agents: int, splits: Splits
) -> StudyError:
    least = f"{'' if name == 'calls' else 'about '}{sufficient(name, smallest):.10g} at least"
    return StudyError(
        f"`budget.{name}` is {limit:.10g}, but a verdict needs {least}: for {n_agents} single "
        f"agents on {len(splits.val)} val rows, and the pick and the best single agent on "
        f"{len(splits.test)} test rows. Allow that much, or give fewer rows."
    )


def smallest_limit(
    options: SearchOptions,
    name: str,
    costs: Mapping[str, float],
    n_val: Mapping[str, int],
    n_test: Mapping[str, int],
    judging: float = 0.0,
) -> float:
    """Return the smallest limit of a budget that reaches a verdict.

    Args:
        options: Options of the search.
        name: Name of the limit: calls, tokens, usd or seconds.
        costs: Costs of one question to each agent, in that unit.
        n_val: Rows of val that each agent has to be asked about.
        n_test: Rows of test, likewise.
        judging: What a judge takes, in that unit.
    """
    may_vote = "vote" in options.space.combines and options.space.searches_layers
    n_tested = 1 + (options.space.max_width if may_vote else 1)
    most = max(costs.values())
    if name == "seconds":  # a model of this machine answers one question after the other
        n, pool = options.num_threads, options.pool
        costs = {a: cost if pool[a].is_local else cost / n for a, cost in costs.items()}
        judging /= n
    tested = sorted((costs[agent] * n for agent, n in n_test.items()), reverse=True)
    needed = judging + sum(costs[agent] * n for agent, n in n_val.items()) + sum(tested[:n_tested])
    return needed + (needed > 0) * _reserve(options, name, most)


def _n_unknown(
    evaluator: Evaluator, ledger: Ledger, agent: str, rows: Sequence[dspy.Example]
) -> int:
    """Return on how many rows the agent would be asked, without asking it."""
    n_known = 0
    with spending_under(ledger, share=0.0):
        for row in rows:
            with suppress(BudgetReachedError):
                evaluator.ask(Architecture.single(agent), row)
                n_known += 1
    return len(rows) - n_known


def _reserve(options: SearchOptions, name: str, most: float) -> float:
    """Return what must be left for the last calls: their longest answers, or the slowest's time."""
    longest = {agent: options.pool[agent].max_tokens for agent in options.space.agents}
    if name == "tokens":
        return float(options.num_threads * max(longest.values()))
    if name == "usd":
        prices = {agent: options.pool.price(agent) for agent in longest}
        costs = [price.usd(0, longest[agent]) for agent, price in prices.items() if price]
        return options.num_threads * max(costs, default=0.0)
    return most + 5.0 if name == "seconds" else 0.0  # 5 s are this process's own work


def sufficient(name: str, value: float) -> float:
    """Round a limit up to three digits; of seconds, which vary with each probe, a quarter more."""
    value *= 1.25 if name == "seconds" else 1.0
    if value == round(value):
        return value
    step = 10.0 ** (floor(log10(value)) - 2)
    return ceil(value / step) * step
