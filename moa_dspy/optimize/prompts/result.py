"""The result of tuning one prompt as plain data, and a short report of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.prompts.prompt import Prompt, prompt_diff
from moa_dspy.winrate import Interval, mean_interval, verdict

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

ROLES: Final = ("proposers", "aggregator", "prompt_model")
STAGES: Final = ("references", "tuning", "validation", "test")


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests to models.

    Attributes:
        made: Were sent, failed ones included.
        reused: Came from a store or a recording.
    """

    made: int = 0
    reused: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.made + other.made, self.reused + other.reused)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that was tried.

    Attributes:
        prompt: The whole of it.
        origin: The optimizer, and how it made it, such as ``COPRO, depth 1``.
        score: Mean metric on the rows that the optimizer judged by, in [0, 1]; None where
            it does not say.
    """

    prompt: Prompt
    origin: str
    score: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"origin": self.origin, "score": self.score, "prompt": self.prompt.to_json()}


@dataclass(frozen=True, slots=True)
class PromptComparison:
    """The new prompt against the incumbent, row by row.

    Attributes:
        n: Rows.
        before: Mean score of the incumbent with a 95 % interval.
        after: Of the new prompt.
        difference: Paired interval of mean(after - before).
        p_value: One-sided, for after > before.
        n_more: Rows that would be needed beside these to see the gain; 0 if all is known.
        is_proven: Whether the new prompt is better at the level that was asked for.
    """

    n: int
    before: Interval
    after: Interval
    difference: Interval
    p_value: float
    n_more: int
    is_proven: bool

    @classmethod
    def of(
        cls, before: Sequence[float], after: Sequence[float], *, alpha: float, min_gain: float
    ) -> PromptComparison:
        """Test the new prompt once, by the verdict of a search.

        Args:
            before: Scores of the incumbent in [0, 1].
            after: Of the new prompt on the same rows.
            alpha: Level of the one-sided paired test.
            min_gain: Smallest gain worth having, for the number of rows that are missing.
        """
        found = verdict(after, before, pick_is_single=False, alpha=alpha, min_gain=min_gain)
        return cls(
            n=found.n,
            before=mean_interval(before),
            after=mean_interval(after),
            difference=found.interval,
            p_value=1.0 if found.p_value is None else found.p_value,
            n_more=found.n_more,
            is_proven=found.kind == "mixture",
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PromptOrigin:
    """The optimizer that made the new prompt.

    Attributes:
        optimizer: Name of its class.
        settings: Its plain settings and the options of ``compile``; no LM, no key.
    """

    optimizer: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The outcome of ``optimize_aggregator``.

    Attributes:
        program: The mixture with the accepted prompt; with the incumbent's if none was.
        accepted: Whether the new prompt was proven better on ``val``.
        before: The incumbent's prompt.
        after: The optimizer's, accepted or not.
        val: Both on the validation rows, which the optimizer never saw.
        test: Both on the test rows, after the decision; None without a ``testset``.
        calls: Requests by stage and role, over all rows.
        origin: The optimizer that made the prompt.
        candidates: The prompts that the optimizer says it tried, the best first.
        layer: The layer of the readers whose prompt it is; None is the last step.
        notes: What a reader must know of this run.
    """

    program: MixtureOfAgents
    accepted: bool
    before: Prompt
    after: Prompt
    val: PromptComparison
    test: PromptComparison | None
    calls: Mapping[str, Mapping[str, Counted]]
    origin: PromptOrigin
    candidates: tuple[Candidate, ...]
    layer: int | None = None
    notes: tuple[str, ...] = ()

    def calls_of(self, role: str) -> Counted:
        """Return the requests to ``proposers``, ``aggregator`` or ``prompt_model`` in all."""
        return sum((roles[role] for roles in self.calls.values()), Counted())

    @property
    def proposer_calls(self) -> int:
        """Requests made to the layers before the optimised seats; 0 if all of it was stored."""
        return self.calls_of("proposers").made

    @property
    def aggregator_calls(self) -> int:
        """Requests made to the optimised seats, and to those that read them."""
        return self.calls_of("aggregator").made

    @property
    def prompt_model_calls(self) -> int:
        """Requests made by the optimizer itself, to write prompts."""
        return self.calls_of("prompt_model").made

    @property
    def diff(self) -> str:
        """The two prompts as a unified diff; "" if the optimizer changed nothing."""
        return prompt_diff(self.before, self.after)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "architecture": str(self.program.architecture),
            "layer": self.layer,
            "accepted": self.accepted,
            "origin": asdict(self.origin),
            "val": self.val.to_json(),
            "test": self.test.to_json() if self.test else None,
            "calls": {role: asdict(self.calls_of(role)) for role in ROLES},
            "calls_by_stage": {
                stage: {role: asdict(one) for role, one in found.items()}
                for stage, found in self.calls.items()
            },
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "diff": self.diff,
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "notes": list(self.notes),
        }


_COLOURS: Final = {"+": "green", "-": "red", "@": "cyan"}


class PromptReport:
    """Prints a ``PromptResult`` with rich; ``str`` of it is the same text without colours."""

    def __init__(self, result: PromptResult) -> None:
        self.result = result

    def __str__(self) -> str:
        return "\n".join([*_lines(self.result), "", self.result.diff]).rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the decision in bold, the facts, then the diff."""
        from rich.text import Text

        first, *rest = _lines(self.result)
        yield Text(first, style="bold")
        yield from (Text(line) for line in rest)
        yield Text("")
        for line in self.result.diff.splitlines():
            yield Text(line, style=_COLOURS.get(line[:1], ""))


def _lines(result: PromptResult) -> Iterator[str]:
    """Yield the decision, then one line per fact."""
    yield _decision(result)
    yield _numbers("validation", result.val)
    if result.test is not None:
        yield _numbers("test", result.test)
    asked = [(role, result.calls_of(role)) for role in ROLES]
    yield "calls made: " + ", ".join(f"{role} {one.made} (+{one.reused})" for role, one in asked)
    yield f"{result.origin.optimizer} tried {len(result.candidates)} prompts"
    yield from result.notes


def _decision(result: PromptResult) -> str:
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
