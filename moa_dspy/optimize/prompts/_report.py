"""A short report of a ``PromptResult``: the decision, the numbers, the calls, the diff."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from moa_dspy.optimize.prompts._guard import Comparison
from moa_dspy.optimize.prompts._result import PromptResult
from moa_dspy.optimize.prompts._tally import ROLES

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_COLOURS: Final = {"+": "green", "-": "red", "@": "cyan"}


class PromptReport:
    """Prints a ``PromptResult`` with rich; ``str`` of it is the same text without colours."""

    def __init__(self, result: PromptResult) -> None:
        self.result = result

    def __str__(self) -> str:
        return "\n".join([*facts(self.result), "", self.result.diff]).rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the decision in bold, the facts, then the diff."""
        from rich.text import Text

        first, *rest = facts(self.result)
        yield Text(first, style="bold")
        yield from (Text(line) for line in rest)
        yield Text("")
        for line in self.result.diff.splitlines():
            yield Text(line, style=_COLOURS.get(line[:1], ""))


def facts(result: PromptResult) -> Iterator[str]:
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


def _numbers(name: str, found: Comparison) -> str:
    gap = found.difference
    low, mean, high = (f"{100 * it + 0.0:+.1f}" for it in (gap.low, gap.estimate, gap.high))
    return (
        f"{name}, {found.n} rows: {100 * found.before.estimate:.1f} % before, "
        f"{100 * found.after.estimate:.1f} % after; {mean} points [{low}, {high}]"
    )
