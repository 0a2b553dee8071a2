"""Options of a search for prompts; the traits of DSPy's optimizers, and checks before any call."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import dspy
from dspy import teleprompt as tp

from moa_dspy.errors import StudyError
from moa_dspy.files import NUMBER, WHOLE, Kinds, check_kinds, unknown
from moa_dspy.optimize.prompts.prompt import PromptRegistry
from moa_dspy.optimize.space.space import SearchSpace
from moa_dspy.signatures import AGGREGATE_AND_SYNTHESIZE, AGGREGATION_PROMPTS

_STUDENT: Final = ("student", "teacher", "trainset", "valset")
"""Arguments of ``compile`` that are made here: rows that tune a prompt must not also judge it."""


@dataclass(frozen=True, slots=True)
class OptimizerTraits:
    """The traits of an optimizer that matter here.

    Attributes:
        writes_with: Its attribute that has the LM that writes prompts, for which DSPy's global
            LM stands in; None if nothing is written.
        percent: Whether the scores it reports are shares of 100.
        reads_feedback: Whether it reads what a metric says beside the score.
        copies_lm: Whether it copies DSPy's global LM, to ask anew, even if it writes nothing.
        judges_references: Whether it needs a metric that can score references, see
            ``ReferenceFeedback``.
    """

    writes_with: str | None = None
    percent: bool = True
    reads_feedback: bool = False
    copies_lm: bool = False
    judges_references: bool = False

    def lacks_writer(self, optimizer: Any) -> bool:
        """True if the optimizer writes prompts, and has been given no LM for it."""
        if self.writes_with is None:
            return False
        given = getattr(optimizer, self.writes_with)
        own = getattr(optimizer, "custom_instruction_proposer", None)
        # A proposer of the caller's may ask no LM, or another one; DSPy's asks this LM.
        is_callers = own is not None and name_of(own) != "InstructionProposer"
        return not (given.get("lm") if isinstance(given, Mapping) else given or is_callers)


OPTIMIZER_TRAITS: Final[dict[str, OptimizerTraits]] = {
    "BetterTogether": OptimizerTraits(),
    "BootstrapFewShot": OptimizerTraits(copies_lm=True),
    "BootstrapFewShotWithOptuna": OptimizerTraits(copies_lm=True),
    "BootstrapFewShotWithRandomSearch": OptimizerTraits(copies_lm=True),
    "COPRO": OptimizerTraits("prompt_model"),
    "GEPA": OptimizerTraits("reflection_lm", percent=False, reads_feedback=True),
    "InferRules": OptimizerTraits("teacher_settings"),
    "LabeledFewShot": OptimizerTraits(),
    "MIPROv2": OptimizerTraits("prompt_model"),
    "ReferenceDemos": OptimizerTraits(reads_feedback=True, judges_references=True),
    "SIMBA": OptimizerTraits("prompt_model", percent=False, reads_feedback=True),
    "TryPrompts": OptimizerTraits(percent=False),
}
"""By class name. An optimizer that is not here is run as it is, without feedback."""

OPTIMIZER_NAMES: Final = ("bootstrap", "copro", "demos", "gepa", "miprov2", "simba", "try")
"""Names that a study may use for an optimizer; ``builtin.OPTIMIZERS`` makes them."""

WRITERS: Final = ("copro", "gepa", "miprov2", "simba")
"""Those that need a language model to write prompts."""

UNFIT: Final = (
    "AvatarOptimizer",
    "BootstrapFinetune",
    "Ensemble",
    "GRPO",
    "KNNFewShot",
    "ModelSearch",
)
"""Optimizers that change something other than a prompt."""


def traits_of(optimizer: Any) -> OptimizerTraits:
    """Return the traits of an optimizer, by its class or a base of it."""
    names = (kind.__name__ for kind in type(optimizer).__mro__)
    known = (OPTIMIZER_TRAITS[name] for name in names if name in OPTIMIZER_TRAITS)
    return next(known, OptimizerTraits())


def name_of(optimizer: Any) -> str:
    """Return the name of an optimizer's class."""
    return type(optimizer).__name__


def check_optimizer(
    optimizer: Any, options: Mapping[str, Any], *, n_rows: int, is_alone: bool
) -> None:
    """Raise unless the optimizer can run.

    Args:
        optimizer: An instance.
        options: Further arguments of its ``compile``.
        n_rows: How many rows it will tune on.
        is_alone: Whether the program is the mixture itself, and not one that holds it.

    Raises:
        StudyError: Naming what it needs and what there is.
    """
    if not isinstance(optimizer, tp.Teleprompter) or name_of(optimizer) in UNFIT:
        shown = optimizer.__name__ if inspect.isclass(optimizer) else name_of(optimizer)
        raise StudyError(
            "`optimizer` must be an instance of a DSPy optimizer of prompts, such as "
            f"{', '.join(sorted(OPTIMIZER_TRAITS))}, but got {shown}."
        )
    _check_options(optimizer, options)
    for step in steps_of(optimizer, options):
        traits = traits_of(step)
        if traits.judges_references and not is_alone:
            raise StudyError(
                f"The worked examples of {name_of(step)} need a student that is the mixture "
                "itself: the questions of a larger program's mixture have no expected answers. "
                "Use another optimizer, such as `bootstrap` (dspy.BootstrapFewShot)."
            )
        if traits.lacks_writer(step) and dspy.settings.lm is None:
            raise StudyError(
                f"{name_of(step)} needs a language model to write prompts and has none: give it "
                f"`{traits.writes_with}`, or set one with `dspy.configure(lm=...)`."
            )
        if isinstance(step, tp.SIMBA) and step.bsize > n_rows:
            raise StudyError(
                f"`bsize` of SIMBA must be at most the number of train rows, {n_rows}, "
                f"but got {step.bsize}."
            )


def _check_options(optimizer: Any, options: Mapping[str, Any]) -> None:
    given = [("compile_options", options)]
    if isinstance(optimizer, tp.BetterTogether):
        nested = options.get("optimizer_compile_args") or {}
        given += [("optimizer_compile_args", arguments) for arguments in nested.values()]
    for name, arguments in given:
        if taken := sorted(set(arguments) & set(_STUDENT)):
            raise StudyError(
                f"`{name}` cannot have {taken[0]!r}: program and rows are given to "
                "`optimize_aggregator`, or to the search."
            )
    try:
        inspect.signature(optimizer.compile).bind(None, trainset=None, **options)
    except TypeError as error:
        raise StudyError(f"`compile_options` do not fit {name_of(optimizer)}: {error}.") from error


def steps_of(optimizer: Any, options: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the optimizer, or those that BetterTogether runs one after the other.

    Raises:
        StudyError: If its strategy names one that there is not, or that changes no prompt.
    """
    yield optimizer
    if not isinstance(optimizer, tp.BetterTogether):
        return
    default = inspect.signature(optimizer.compile).parameters["strategy"].default
    strategy = options.get("strategy", default)
    for key in strategy.split(optimizer.STRAT_SEP):
        step = optimizer.optimizers.get(key)
        if step is None or name_of(step) in UNFIT:
            fit = (k for k, made in optimizer.optimizers.items() if name_of(made) not in UNFIT)
            raise StudyError(
                f"`strategy` {strategy!r} of BetterTogether must name its optimizers of prompts "
                f"({', '.join(fit) or 'it has none'}), but has {key!r}; pass it in "
                "`compile_options`."
            )
        yield step


@dataclass(frozen=True, slots=True)
class TuningEffort:
    """About how many requests the tuning of prompts takes, for a forecast.

    Attributes:
        mixtures: Whose prompt is tuned, over all rounds.
        rows: Train rows, each with references of every mixture.
        answers_per_row: Answers per row of the aggregator of a mixture.
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
        check_kinds(self, _KINDS, before="`prompts.", error=StudyError)
        _check_numbers(self)
        for name in self.candidates:
            if name not in AGGREGATION_PROMPTS:
                raise unknown("prompts.candidates", name, AGGREGATION_PROMPTS)
        for name, text in self.texts.items():
            if name in AGGREGATION_PROMPTS and text != AGGREGATION_PROMPTS[name]:
                raise StudyError(
                    f"`prompts.texts`: {name!r} is the name of a built-in prompt; give the text a "
                    f"name other than {', '.join(AGGREGATION_PROMPTS)}."
                )
            if not text.strip():
                raise StudyError(f"`prompts.texts`: the text of {name!r} is empty.")
        is_named = isinstance(self.optimizer, str)
        if is_named and self.optimizer not in OPTIMIZER_NAMES:
            raise unknown("prompts.optimizer", self.optimizer, OPTIMIZER_NAMES)
        if self.proposer_agent is not None and not is_named:
            raise StudyError(
                "`prompts.proposer_agent` goes with an `optimizer` by name "
                f"({', '.join(OPTIMIZER_NAMES)}), but got {self.proposer_agent!r} without one."
            )
        if self.compile_options and (is_named or self.optimizer is None):
            raise StudyError(
                "`prompts.compile_options` goes with an `optimizer` that is given as an object, "
                f"but `optimizer` is {self.optimizer!r}."
            )

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
        is_fit = "synthesize" in space.combines and space.searches_layers
        if not is_fit and not any(a.combine == "synthesize" and a.layers for a in space.listed):
            raise StudyError(
                "`prompts` needs a space in which an aggregator may synthesize, but got "
                f"`space.combines` of {', '.join(space.combines)} and a `max_depth` of "
                f"{space.max_depth}."
            )
        for architecture in space.listed:
            if architecture.prompt is not None and architecture.prompt not in registry.names:
                raise unknown("space.listed", architecture.prompt, registry.names)
        return replace(space, prompts=registry.names)


_KINDS: Final[Kinds] = {
    "candidates": (list | tuple, "a list of names"),
    "texts": (Mapping, "texts by name"),
    **dict.fromkeys(("rounds", "top", "demos", "n_prompts"), WHOLE),
    **dict.fromkeys(("share", "tuning_share"), NUMBER),
}


def _check_numbers(options: PromptOptions) -> None:
    for name, least in {"rounds": 1, "top": 1, "n_prompts": 1, "demos": 0}.items():
        if (value := getattr(options, name)) < least:
            raise StudyError(f"`prompts.{name}` must be at least {least}, but got {value}.")
    if not 0 < options.share < 1 or not 0 <= options.tuning_share < 1:
        raise StudyError(
            "`prompts.share` must be in (0, 1) and `tuning_share` in [0, 1), but got "
            f"{options.share} and {options.tuning_share}."
        )
    if options.optimizer is None and not options.candidates and not options.texts:
        raise StudyError("`prompts` must have `candidates`, `texts` or an `optimizer`; got none.")
