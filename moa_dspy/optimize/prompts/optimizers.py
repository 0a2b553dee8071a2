"""DSPy's optimizers of prompts: their traits, what is checked before a call, what they tried."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import dspy
from dspy import teleprompt as tp

from moa_dspy.errors import StudyError
from moa_dspy.optimize.prompts.prompt import Prompt

_STUDENT: Final = ("student", "teacher", "trainset", "valset")
"""Arguments of ``compile`` that are made here: rows that tune a prompt must not also judge it."""


@dataclass(frozen=True, slots=True)
class OptimizerTraits:
    """The traits of an optimizer that matter here.

    Attributes:
        writes_with: What gives it the LM that writes prompts; None if nothing is written.
        writer: Finds that LM; DSPy's global LM stands in for it.
        percent: Whether the scores it reports are shares of 100.
        reads_feedback: Whether it reads what a metric says beside the score.
        copies_lm: Whether it copies DSPy's global LM, to ask anew, even if it writes nothing.
    """

    writes_with: str | None = None
    writer: Callable[[Any], Any] = lambda optimizer: None
    percent: bool = True
    reads_feedback: bool = False
    copies_lm: bool = False


def _prompt_model(optimizer: Any) -> Any:
    return optimizer.prompt_model


def _teacher(optimizer: Any) -> Any:
    return optimizer.teacher_settings.get("lm")


def _reflects(optimizer: Any) -> Any:
    own = optimizer.custom_instruction_proposer
    # A proposer of the caller's may ask no LM, or another one; DSPy's asks this LM.
    is_callers = own is not None and name_of(own) != "InstructionProposer"
    return optimizer.reflection_lm or is_callers


OPTIMIZER_TRAITS: Final[dict[str, OptimizerTraits]] = {
    "BetterTogether": OptimizerTraits(),
    "BootstrapFewShot": OptimizerTraits(copies_lm=True),
    "BootstrapFewShotWithOptuna": OptimizerTraits(copies_lm=True),
    "BootstrapFewShotWithRandomSearch": OptimizerTraits(copies_lm=True),
    "COPRO": OptimizerTraits("prompt_model", _prompt_model),
    "GEPA": OptimizerTraits("reflection_lm", _reflects, percent=False, reads_feedback=True),
    "InferRules": OptimizerTraits(
        "teacher_settings", lambda optimizer: optimizer.teacher_settings.get("lm")
    ),
    "LabeledFewShot": OptimizerTraits(),
    "MIPROv2": OptimizerTraits("prompt_model", _prompt_model),
    "ReferenceDemos": OptimizerTraits(),
    "SIMBA": OptimizerTraits("prompt_model", _prompt_model, percent=False, reads_feedback=True),
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
    return next(
        (OPTIMIZER_TRAITS[name] for name in names if name in OPTIMIZER_TRAITS), OptimizerTraits()
    )


def name_of(optimizer: Any) -> str:
    """Return the name of an optimizer's class."""
    return type(optimizer).__name__


def refuse_options(optimizer: Any, options: Mapping[str, Any]) -> None:
    """Raise if an optimizer of ours is given what its ``compile`` does not know."""
    if options:
        raise StudyError(f"Unknown option {min(options)!r} of {name_of(optimizer)}.compile.")


def check_optimizer(optimizer: Any, options: Mapping[str, Any], *, n_rows: int) -> None:
    """Raise unless the optimizer can run.

    Args:
        optimizer: An instance.
        options: Further arguments of its ``compile``.
        n_rows: How many rows it will tune on.

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
    for one in steps_of(optimizer, options):
        traits = traits_of(one)
        if traits.writes_with and not traits.writer(one) and dspy.settings.lm is None:
            raise StudyError(
                f"{name_of(one)} needs a language model to write prompts and has none: give it "
                f"`{traits.writes_with}`, or set one with `dspy.configure(lm=...)`."
            )
        smallest = getattr(one, "bsize", 0) if isinstance(one, tp.SIMBA) else 0
        if smallest > n_rows:
            raise StudyError(
                f"`bsize` of SIMBA must be at most the number of train rows, {n_rows}, "
                f"but got {smallest}."
            )


def _check_options(optimizer: Any, options: Mapping[str, Any]) -> None:
    if taken := sorted(set(options) & set(_STUDENT)):
        raise StudyError(f"`compile_options` cannot have {taken[0]!r}: it is made here.")
    try:
        inspect.signature(optimizer.compile).bind(None, trainset=None, **options)
    except TypeError as error:
        raise StudyError(f"`compile_options` do not fit {name_of(optimizer)}: {error}.") from error
    if isinstance(optimizer, tp.BetterTogether):
        nested = options.get("optimizer_compile_args") or {}
        if taken := sorted(key for one in nested.values() for key in one if key in _STUDENT):
            raise StudyError(f"`optimizer_compile_args` cannot have {taken[0]!r}: it is made here.")


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
            known = ", ".join(
                k for k, one in optimizer.optimizers.items() if name_of(one) not in UNFIT
            )
            raise StudyError(
                f"`strategy` {strategy!r} of BetterTogether must name its optimizers of prompts "
                f"({known or 'it has none'}), but has {key!r}; pass it in `compile_options`."
            )
        yield step


_NOTED: Final = ("strategy", "seed", "depth", "prompt")
"""What optimizers note of a candidate beside its score."""


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


def candidates_of(optimizer: Any, made: Any) -> tuple[Candidate, ...]:
    """Return every different prompt that the optimizer reports, the best first.

    Of optimizers that keep no list, such as BootstrapFewShot, it is the one they returned.
    """
    found = [*_listed(optimizer, made), *_of_gepa(made)]
    if not found:
        found = [Candidate(Prompt.of(made.aggregator), name_of(optimizer), None)]
    best: dict[str, Candidate] = {}
    for one in sorted(found, key=lambda it: -1.0 if it.score is None else -it.score):
        best.setdefault(one.prompt.key, one)
    return tuple(best.values())


def _listed(optimizer: Any, made: Any) -> Iterator[Candidate]:
    scale = 100 if traits_of(optimizer).percent else 1
    name = name_of(optimizer)
    for attribute in ("candidate_programs", "mb_candidate_programs"):
        for entry in getattr(made, attribute, None) or ():
            noted = [f"{key} {entry[key]}" for key in _NOTED if entry.get(key) not in (None, "")]
            part = ["part of the rows"] if attribute.startswith("mb_") else []
            score = None if entry["score"] is None else float(entry["score"]) / scale
            origin = ", ".join([name, *noted, *part])
            yield Candidate(Prompt.of(entry["program"].aggregator), origin, score)


def _of_gepa(made: Any) -> Iterator[Candidate]:
    details = getattr(made, "detailed_results", None)
    if details is None:
        return
    for n, program in enumerate(details.candidates):
        parents = [str(parent) for parent in details.parents[n] if parent is not None]
        origin = f"GEPA, candidate {n}" + (f" of {' and '.join(parents)}" if parents else "")
        score = float(details.val_aggregate_scores[n])
        yield Candidate(Prompt.of(program.aggregator), origin, score)
