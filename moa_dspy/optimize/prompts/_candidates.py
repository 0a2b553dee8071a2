"""The prompts that an optimizer tried, with where each came from and what it scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from moa_dspy.optimize.prompts._habits import habits_of, name_of
from moa_dspy.optimize.prompts._prompt import Prompt

_TOLD: Final = ("strategy", "seed", "depth", "prompt")
"""What optimizers note of a candidate beside its score."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that was tried.

    Attributes:
        prompt: The whole of it.
        origin: Who made it, and how, such as ``COPRO, depth 1``.
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
    """Return every different prompt that the optimizer tells of, the best first.

    Optimizers that keep no list, such as BootstrapFewShot, tell of the one they returned.
    """
    found = [*_listed(optimizer, made), *_of_gepa(made)]
    if not found:
        found = [Candidate(Prompt.of(made.aggregator), name_of(optimizer), None)]
    best: dict[str, Candidate] = {}
    for one in sorted(found, key=lambda it: -1.0 if it.score is None else -it.score):
        best.setdefault(one.prompt.key, one)
    return tuple(best.values())


def _listed(optimizer: Any, made: Any) -> Iterator[Candidate]:
    scale = 100 if habits_of(optimizer).percent else 1
    name = name_of(optimizer)
    for attribute in ("candidate_programs", "mb_candidate_programs"):
        for entry in getattr(made, attribute, None) or ():
            told = [f"{key} {entry[key]}" for key in _TOLD if entry.get(key) not in (None, "")]
            part = ["part of the rows"] if attribute.startswith("mb_") else []
            score = None if entry["score"] is None else float(entry["score"]) / scale
            origin = ", ".join([name, *told, *part])
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
