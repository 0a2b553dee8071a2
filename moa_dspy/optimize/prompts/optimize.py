"""``optimize_aggregator``: a DSPy optimizer on the aggregator alone, and the test of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import dspy

from moa_dspy.data.splits import check_disjoint, with_ids
from moa_dspy.errors import StudyError
from moa_dspy.optimize.evaluate import Student
from moa_dspy.optimize.metric import CheckedMetric
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.optimize.prompts.options import check_optimizer, name_of
from moa_dspy.optimize.prompts.prompt import Candidate, Prompt, prompt_diff
from moa_dspy.optimize.prompts.student import Target
from moa_dspy.optimize.prompts.tuning import (
    ROLES,
    Counted,
    PromptComparison,
    PromptTuning,
    TunedPrompt,
    calls_by_stage,
)
from moa_dspy.winrate.intervals import points

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


def optimize_aggregator(
    program: Any,
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
    min_gain: float = 0.03,
    num_threads: int = 8,
    seed: int = 0,
) -> PromptResult:
    """Return the program with a better prompt for the agent that reads the references, if any.

    The references of every row are computed once, or come from the store; from then on only
    their reader is asked, and the optimizer's own model. The new prompt replaces the incumbent
    only if it is better on ``valset``, by a one-sided paired test. Nothing of the caller's is
    changed, also where it raises: pool, ledger, settings, program and optimizer.

    Args:
        program: A mixture whose last step asks a model, or a program that holds one, which is
            run and scored whole; it is not changed.
        optimizer: An instance of GEPA, MIPROv2, COPRO, SIMBA, ...; it is not changed. One
            that reflects is given feedback made of the references.
        trainset: All rows that the optimizer sees.
        valset: Rows for the decision alone.
        metric: Any DSPy metric with values in [0, 1]; default: the optimizer's own.
        layer: Instead of the last step, the readers of this layer, who share one prompt;
            layers count from 1, and the first one reads nothing.
        testset: Rows on which both prompts are measured after the decision.
        compile_options: Further arguments of the optimizer's ``compile``.
        tuning_share: Part of the train rows that an optimizer judges by, where its
            ``compile`` takes a ``valset``; 0 leaves the choice to the optimizer.
        alpha: Level of the test.
        min_gain: Smallest gain worth having, for the number of rows that are missing.
        num_threads: Rows measured at the same time, outside of the optimizer.
        seed: Seed of the split of train rows, and of an optimizer without a seed.

    Raises:
        StudyError: Before any call, if an option, the metric or the optimizer does not fit,
            the program holds no mixture or several, or the optimizer needs an LM and has
            none; later, if the optimizer itself fails.
        ArchitectureError: If no agent in the program reads references, or not in ``layer``.
        DataError: If rows are missing, or two of the sets overlap.
        MetricError: If the metric raises or returns no number in [0, 1].
        LayerFailedError: If no train row has references.
    """
    _check_numbers(tuning_share, alpha, min_gain, num_threads)
    target, options = Target.of(program, layer), dict(compile_options or {})
    checked = CheckedMetric.of(_metric(metric, optimizer))
    rows = _splits(trainset=trainset, valset=valset, testset=testset)
    check_optimizer(optimizer, options, n_rows=len(rows["trainset"]), is_alone=target.is_alone)
    tuning = PromptTuning(target, checked, NodeCache(), num_threads, tuning_share, seed)
    found = tuning.run(optimizer, rows["trainset"], options)
    test = partial(tuning.compared, found.prompt, alpha=alpha, min_gain=min_gain)
    return _tested(tuning, found, rows, test, layer=layer, **_origin(optimizer, options))


def _tested(
    tuning: PromptTuning,
    found: TunedPrompt,
    rows: Mapping[str, Sequence[dspy.Example]],
    compared: Callable[..., PromptComparison],
    **origin: Any,
) -> PromptResult:
    """Accept the new prompt by val alone, before a test row is read; then measure on test."""
    val = compared(rows["valset"], stage="validation")
    return PromptResult(
        program=tuning.target.with_prompt(found.prompt if val.is_proven else None).program,
        before=Prompt.of(tuning.target.modules[0]),
        after=found.prompt,
        val=val,
        test=compared(rows["testset"], stage="test") if rows["testset"] else None,
        calls=calls_by_stage(tuning.cache),
        candidates=found.candidates,
        notes=found.notes,
        **origin,
    )


def _splits(**sets: Sequence[dspy.Example] | None) -> dict[str, list[dspy.Example]]:
    """Return the rows with ids; no id comes twice, and no question is in two sets."""
    named = {name: with_ids(rows or (), name.removesuffix("set")) for name, rows in sets.items()}
    check_disjoint(named, may_be_empty="testset")
    return named


def _metric(metric: Any, optimizer: Any) -> Any:
    own = (getattr(optimizer, name, None) for name in ("metric", "metric_fn"))
    found = next((given for given in (metric, *own) if given is not None), None)
    if found is None:
        raise StudyError(f"`metric` must be given, as {name_of(optimizer)} has none.")
    return found


def _check_numbers(tuning_share: float, alpha: float, min_gain: float, num_threads: int) -> None:
    if not 0 <= tuning_share < 1 or not 0 < alpha < 0.5 or not 0 < min_gain < 1 or num_threads < 1:
        raise StudyError(
            "`tuning_share` must be in [0, 1), `alpha` in (0, 0.5), `min_gain` in (0, 1) and "
            f"`num_threads` at least 1, but got {tuning_share}, {alpha}, {min_gain} and "
            f"{num_threads}."
        )


def _origin(optimizer: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optimizer's name and plain settings; an LM, a key or a folder is left out."""
    private = ("key", "secret", "token", "password", "dir")
    settings = {
        name: value
        for name, value in {**vars(optimizer), **options}.items()
        if isinstance(value, bool | int | float | str)
        and not name.startswith("_")
        and not name.endswith(private)
    }
    return {"optimizer": name_of(optimizer), "settings": settings}


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The outcome of ``optimize_aggregator``.

    Attributes:
        program: With the accepted prompt; with the incumbent's if none was.
        before: The incumbent's prompt.
        after: The optimizer's, accepted or not.
        val: Both on the validation rows, which the optimizer never saw.
        test: Both on the test rows, after the decision; None without a ``testset``.
        calls: Requests by stage and role, over all rows.
        optimizer: Name of the class that made the new prompt.
        settings: Its plain settings and the options of ``compile``; no LM, no key.
        candidates: The prompts that the optimizer says it tried, the best first.
        layer: The layer of the readers whose prompt it is; None is the last step.
        notes: What a reader must know of this run.
    """

    program: Any
    before: Prompt
    after: Prompt
    val: PromptComparison
    test: PromptComparison | None
    calls: Mapping[str, Mapping[str, Counted]]
    optimizer: str
    settings: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    layer: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """True if the new prompt was proven better on ``val``."""
        return self.val.is_proven

    def calls_of(self, role: str) -> Counted:
        """Return the requests to ``proposers``, ``aggregator`` or ``prompt_model`` in all."""
        return sum((roles[role] for roles in self.calls.values()), Counted())

    @property
    def diff(self) -> str:
        """The two prompts as a unified diff; "" if the optimizer changed nothing."""
        return prompt_diff(self.before, self.after)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "architecture": str(Student.of(self.program).mixture.architecture),
            "layer": self.layer,
            "accepted": self.accepted,
            "origin": {"optimizer": self.optimizer, "settings": dict(self.settings)},
            "val": self.val.to_json(),
            "test": self.test.to_json() if self.test else None,
            "calls": {role: asdict(self.calls_of(role)) for role in ROLES},
            "calls_by_stage": {
                stage: {role: asdict(count) for role, count in roles.items()}
                for stage, roles in self.calls.items()
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
    asked = {role: result.calls_of(role) for role in ROLES}
    yield "calls made: " + ", ".join(f"{role} {n.made} (+{n.reused})" for role, n in asked.items())
    yield f"{result.optimizer} tried {len(result.candidates)} prompts"
    yield from result.notes


def _decision(result: PromptResult) -> str:
    val = result.val
    if result.accepted:
        return f"Use the new prompt: it beats the incumbent (p = {val.p_value:.3f})."
    if not result.diff:
        return f"Keep the prompt: {result.optimizer} returned the same one."
    if val.n_more:
        return (
            f"Keep the prompt: the new one is not proven better (p = {val.p_value:.3f}); "
            f"about {val.n_more} more validation rows would be needed."
        )
    return f"Keep the prompt: the new one is not better (p = {val.p_value:.3f})."


def _numbers(name: str, found: PromptComparison) -> str:
    gap = found.difference
    return (
        f"{name}, {found.n} rows: {points(found.before.estimate)} % before, "
        f"{points(found.after.estimate)} % after; "
        f"{points(gap.estimate, sign='+')} points {gap.ends}"
    )
