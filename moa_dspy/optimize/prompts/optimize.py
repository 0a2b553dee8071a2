"""``optimize_aggregator``: any DSPy optimizer on the aggregator alone, and a guard behind it."""

# DOCS: optimize/prompts/_report: A short report of a ``PromptResult``: the decision, the numbers, the calls, the diff.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import dspy

from moa_dspy.errors import StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts.optimizers import candidates_of, check_optimizer, name_of
from moa_dspy.optimize.prompts.prompt import Prompt
from moa_dspy.optimize.prompts.references import ROLES, CallCounter, Target
from moa_dspy.optimize.prompts.student import Scoring, Stop
from moa_dspy.optimize.prompts.tuning import (
    PromptComparison,
    PromptOrigin,
    PromptResult,
    PromptRows,
    PromptRun,
    notes_of,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


def optimize_aggregator(
    program: MixtureOfAgents,
    optimizer: Any,
    trainset: Sequence[dspy.Example],
    valset: Sequence[dspy.Example],
    *,
    metric: Callable[..., Any] | None = None,
    layer: int | None = None,
    testset: Sequence[dspy.Example] | None = None,
    compile_options: Mapping[str, Any] | None = None,
    tuning_share: float = 0.5,
    alpha: float = 0.05,
    gain: float = 0.03,
    num_threads: int = 8,
    seed: int = 0,
) -> PromptResult:
    """Return the program with a better prompt for who reads the references, if one was found.

    The references of every row are computed once, or come from the store; from then on
    only the reader is asked, and the optimizer's own model. The new prompt replaces the
    incumbent only if it is better on ``valset``, by a one-sided paired test.

    Args:
        program: A mixture whose last step asks a model; it is not changed.
        optimizer: An instance of GEPA, MIPROv2, COPRO, SIMBA, ...; it is not changed. One
            that reflects is given feedback made of the references.
        trainset: All that the optimizer sees.
        valset: Rows for the decision alone.
        metric: Any DSPy metric with values in [0, 1]; default: the optimizer's own.
        layer: Instead of the last step, the readers of this layer, who share one prompt;
            layers count from 1, and the first one reads nothing.
        testset: Rows on which both prompts are measured after the decision.
        compile_options: Further arguments of the optimizer's ``compile``.
        tuning_share: Part of the train rows that an optimizer judges by, where its
            ``compile`` takes a ``valset``; 0 leaves the choice to the optimizer.
        alpha: Level of the test.
        gain: Smallest gain worth having, for the number of rows that are missing.
        num_threads: Rows measured at the same time, outside of the optimizer.
        seed: Of the split of train rows, and of an optimizer without a seed.

    Raises:
        StudyError: Before any call, if an option, the metric or the optimizer does not fit,
            or the optimizer needs an LM and has none; later, if the optimizer itself fails.
        ArchitectureError: If nobody in the program reads references, or not in ``layer``.
        DataError: If rows are missing, or two of the sets overlap.
        MetricError: If the metric raises or returns no number in [0, 1].
        LayerFailedError: If no train row has references.
    """
    _check_numbers(tuning_share, alpha, gain, num_threads)
    target, options = Target.of(program, layer), dict(compile_options or {})
    scoring = Scoring.of(_metric(metric, optimizer), Stop())
    rows = PromptRows.of(trainset, valset, testset)
    check_optimizer(optimizer, options, n_rows=len(rows.train))
    run = PromptRun(target, scoring, CallCounter(), num_threads, alpha, gain)
    bank = run.read(rows.train)
    made = run.tuned(optimizer, bank, options, share=tuning_share, seed=seed)
    origin = PromptOrigin(name_of(optimizer), _settings(optimizer, options))
    told = {"candidates": candidates_of(optimizer, made), "notes": notes_of(bank, made)}
    return run.decided(Prompt.of(made.aggregator), rows, layer=layer, origin=origin, **told)


def _metric(metric: Any, optimizer: Any) -> Any:
    found = metric
    for name in ("metric", "metric_fn"):
        found = getattr(optimizer, name, None) if found is None else found
    if found is None:
        raise StudyError("`metric` must be given, as the optimizer has none.")
    return found


def _check_numbers(tuning_share: float, alpha: float, gain: float, num_threads: int) -> None:
    if not 0 <= tuning_share < 1 or not 0 < alpha < 0.5 or not 0 < gain < 1 or num_threads < 1:
        raise StudyError(
            "`tuning_share` must be in [0, 1), `alpha` in (0, 0.5), `gain` in (0, 1) and "
            f"`num_threads` at least 1, but got {tuning_share}, {alpha}, {gain} and {num_threads}."
        )


def _settings(optimizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is plain; an LM, a key or a folder is nobody else's business."""
    named = {**vars(optimizer), **options}
    private = ("key", "secret", "dir")
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, bool | int | float | str)
        and not name.startswith("_")
        and not name.endswith(private)
    }


_COLOURS: Final = {"+": "green", "-": "red", "@": "cyan"}


class PromptReport:
    """Prints a ``PromptResult`` with rich; ``str`` of it is the same text without colours."""

    def __init__(self, result: PromptResult) -> None:
        self.result = result

    def __str__(self) -> str:
        return "\n".join([*report_lines(self.result), "", self.result.diff]).rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the decision in bold, the facts, then the diff."""
        from rich.text import Text

        first, *rest = report_lines(self.result)
        yield Text(first, style="bold")
        yield from (Text(line) for line in rest)
        yield Text("")
        for line in self.result.diff.splitlines():
            yield Text(line, style=_COLOURS.get(line[:1], ""))


def report_lines(result: PromptResult) -> Iterator[str]:
    """Yield the decision, then one line per fact."""
    yield decision(result)
    yield _numbers("validation", result.val)
    if result.test is not None:
        yield _numbers("test", result.test)
    asked = [(role, result.calls_of(role)) for role in ROLES]
    yield "calls made: " + ", ".join(f"{role} {one.made} (+{one.reused})" for role, one in asked)
    yield f"{result.origin.optimizer} tried {len(result.candidates)} prompts"
    yield from result.notes


def decision(result: PromptResult) -> str:
    """Return whether the new prompt is used, and why, as one sentence."""
    val = result.val
    if result.accepted:
        return f"Use the new prompt: it beats the incumbent (p = {val.p_value:.3f})."
    if not result.diff:
        return f"Keep the prompt: {result.origin.optimizer} returned the same one."
    if val.n_more:
        return (
            f"Keep the prompt: the new one is not proven better (p = {val.p_value:.3f}); "
            f"about {val.n_more} more validation rows would be needed."
        )
    return f"Keep the prompt: the new one is not better (p = {val.p_value:.3f})."


def _numbers(name: str, found: PromptComparison) -> str:
    gap = found.difference
    low, mean, high = (f"{100 * it + 0.0:+.1f}" for it in (gap.low, gap.estimate, gap.high))
    return (
        f"{name}, {found.n} rows: {100 * found.before.estimate:.1f} % before, "
        f"{100 * found.after.estimate:.1f} % after; {mean} points [{low}, {high}]"
    )
