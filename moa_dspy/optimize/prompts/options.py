"""Options of a search for the aggregator's prompt: the prompts on offer, and how more are tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moa_dspy.errors import StudyError
from moa_dspy.files import unknown
from moa_dspy.optimize.prompts.optimizers import OPTIMIZER_NAMES, WRITERS
from moa_dspy.optimize.prompts.prompt import PromptRegistry
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, AGGREGATION_PROMPTS


@dataclass(frozen=True, slots=True)
class TuningEffort:
    """About how many requests the tuning of prompts takes, for a forecast.

    Attributes:
        mixtures: Whose prompt is tuned, over all rounds.
        rows: Train rows, each with references of every mixture.
        answers_per_row: Of the aggregator of a mixture.
        written: Prompts that are written for a mixture.
        writer: The agent that writes them; None is a model outside of the pool.
    """

    mixtures: int
    rows: int
    answers_per_row: int
    written: int
    writer: str | None


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """Prompts as a choice of the search, and rounds in which new ones are tuned.

    The search composes, then tunes the prompt of its best mixtures on train rows, then
    composes again with what was found, as often as there are rounds.

    Attributes:
        candidates: Built-in prompts by name.
        texts: Further ones, text by name; each stands above the caller's own instructions.
        optimizer: Any that ``optimize_aggregator`` takes, or its name; None tunes nothing.
        compile_options: Further arguments of its ``compile``; for an instance only.
        proposer_agent: The pool's agent that writes prompts, for an optimizer by name.
        rounds: How often prompts are tuned.
        share: Part of the trials and of the budget for tuning and what follows it, in (0, 1).
        top: Most mixtures whose prompt is tuned in a round.
        demos: Most worked examples in a prompt, for an optimizer by name.
        n_prompts: About how many prompts it may try for a mixture, likewise.
        tuning_share: Part of the train rows that the optimizer judges by.

    Raises:
        StudyError: If an option does not fit, naming it, the value and the choices.
    """

    candidates: Sequence[str] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    optimizer: Any = None
    compile_options: Mapping[str, Any] = field(default_factory=dict)
    proposer_agent: str | None = None
    rounds: int = 1
    share: float = 0.3
    top: int = 2
    demos: int = 3
    n_prompts: int = 6
    tuning_share: float = 0.5

    def __post_init__(self) -> None:
        _check_numbers(self)
        for name in self.candidates:
            if name not in AGGREGATION_PROMPTS:
                raise unknown("prompts.candidates", name, AGGREGATION_PROMPTS)
        for name, text in self.texts.items():
            if name in AGGREGATION_PROMPTS and text != AGGREGATION_PROMPTS[name]:
                raise StudyError(f"`prompts.texts`: {name!r} is the name of a built-in prompt.")
            if not text.strip():
                raise StudyError(f"`prompts.texts`: the text of {name!r} is empty.")
        is_named = isinstance(self.optimizer, str)
        if is_named and self.optimizer not in OPTIMIZER_NAMES:
            raise unknown("prompts.optimizer", self.optimizer, OPTIMIZER_NAMES)
        if self.proposer_agent is not None and not is_named:
            raise StudyError("`prompts.proposer_agent` goes with an `optimizer` by name.")
        if self.compile_options and (is_named or self.optimizer is None):
            raise StudyError("`prompts.compile_options` goes with an `optimizer` that is given.")

    @property
    def all_texts(self) -> dict[str, str]:
        """Built-in and further prompts, text by name."""
        return {name: AGGREGATION_PROMPTS[name] for name in self.candidates} | dict(self.texts)

    @property
    def n_slots(self) -> int:
        """Most prompts that tuning may add."""
        return 0 if self.optimizer is None else self.rounds * self.top

    def part(self, rounds: float) -> float:
        """Return the part of trials and budget that may be used up to the end of a round.

        Args:
            rounds: How many; 0 is before the first, and 0.5 when its tuning ends.
        """
        if self.optimizer is None:
            return 1.0
        return 1 - self.share + self.share * min(rounds / self.rounds, 1.0)

    def effort(self, n_rows: int) -> TuningEffort:
        """Return about what tuning on so many train rows takes; of an instance it is a guess."""
        n = max(2, self.n_prompts)
        untried = {*self.all_texts.values(), *AGGREGATION_PROMPTS.values()}
        answers = {
            "bootstrap": 1,
            "demos": 0,  # the expected outputs of the rows serve
            "copro": n,
            "miprov2": n + 1,  # twice as many trials, on half of the rows
            "simba": 6 * max(1, self.n_prompts // 3) + 4,
            "try": len(untried | {AGGREGATE_AND_SYNTHESIZE}),
        }
        writes = self.optimizer in WRITERS or not isinstance(self.optimizer, str)
        return TuningEffort(
            mixtures=self.n_slots,
            rows=n_rows,
            answers_per_row=answers.get(str(self.optimizer), n + 1),
            written=n if writes else 0,
            writer=self.proposer_agent,
        )

    def make_registry(self, mixture: Any) -> PromptRegistry:
        """Return the prompts for the aggregators of a ``MixtureOfAgents``.

        Raises:
            StudyError: If a name is taken.
        """
        return PromptRegistry.of(mixture, self.all_texts, self.n_slots)

    def space(self, space: SearchSpace, registry: PromptRegistry) -> SearchSpace:
        """Return the space with the prompts as a choice.

        Raises:
            StudyError: If it names other prompts, or no aggregator in it may synthesize.
        """
        if space.prompts and set(space.prompts) != set(registry.names):
            raise StudyError(
                "`space.prompts` must be empty, as `prompts` says which there are, but got "
                f"{', '.join(space.prompts)}."
            )
        listed = [one for one in space.listed if one.combine == "synthesize" and one.layers]
        if not listed and ("synthesize" not in space.combines or not space.searches_layers):
            raise StudyError("`prompts` needs a space in which an aggregator may synthesize.")
        for one in space.listed:
            if one.prompt is not None and one.prompt not in registry.names:
                raise unknown("space.listed", one.prompt, registry.names)
        return replace(space, prompts=registry.names)


def _check_numbers(options: PromptOptions) -> None:
    for name in ("rounds", "top", "n_prompts"):
        if (value := getattr(options, name)) < 1:
            raise StudyError(f"`prompts.{name}` must be at least 1, but got {value}.")
    if options.demos < 0:
        raise StudyError(f"`prompts.demos` must be at least 0, but got {options.demos}.")
    if not 0 < options.share < 1 or not 0 <= options.tuning_share < 1:
        raise StudyError(
            "`prompts.share` must be in (0, 1) and `tuning_share` in [0, 1), but got "
            f"{options.share} and {options.tuning_share}."
        )
    if options.optimizer is None and not options.candidates and not options.texts:
        raise StudyError("`prompts` must have `candidates`, `texts` or an `optimizer`.")
