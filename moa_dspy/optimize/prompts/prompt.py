"""The prompt of a seat as plain data, and the registry of the prompts that a search may name."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import dspy
from pydantic_core import to_jsonable_python

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
from moa_dspy.optimize.space.rules import OWN_PROMPT
from moa_dspy.signatures import separated

_WIDTH: Final = 96


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompts of a module's predictors as plain data.

    Attributes:
        parts: By the names that DSPy gives the predictors: ``instructions``, ``fields`` (prefix
            and description of each, in the signature's order) and ``demos`` (worked examples,
            with the signature's own fields only).
    """

    parts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, module: Any) -> Prompt:
        """Read the prompt of a module, such as ``program.aggregator``."""
        return cls({name: _read(predictor) for name, predictor in module.named_predictors()})

    @classmethod
    def above(cls, text: str, module: Any) -> Prompt:
        """Return the prompt of a module with ``text`` above the caller's own instructions.

        If ``text`` stands there already, it is the module's prompt as it is.
        """
        parts = dict(cls.of(module).parts)
        for name, predictor in module.named_predictors():
            callers, present = separated(predictor.signature)
            if text.strip() != present.strip():
                instructions = "\n\n".join(filter(None, [text.strip(), callers]))
                parts[name] = {**parts[name], "instructions": instructions}
        return cls(parts)

    def put_into(self, module: Any) -> None:
        """Write the prompt into a module of the same kind, which is changed."""
        for name, predictor in module.named_predictors():
            part = self.parts[name]
            predictor.signature = predictor.signature.load_state(part)
            predictor.demos = [dict(demo) for demo in part["demos"]]

    @property
    def instructions(self) -> str:
        """The instructions of every predictor, a blank line between two."""
        return "\n\n".join(part["instructions"] for part in self.parts.values())

    @property
    def demos(self) -> tuple[Mapping[str, Any], ...]:
        """The demos of every predictor."""
        return tuple(demo for part in self.parts.values() for demo in part["demos"])

    @property
    def key(self) -> str:
        """A text that is equal for equal prompts, and for no others."""
        return json.dumps(self.to_json(), sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; a field is its prefix and its description."""
        return {
            name: {
                "instructions": part["instructions"],
                "fields": [[field["prefix"], field["description"]] for field in part["fields"]],
                "demos": [_plain(demo) for demo in part["demos"]],
            }
            for name, part in self.parts.items()
        }


def prompt_diff(before: Prompt, after: Prompt) -> str:
    """Return a unified diff of two prompts as text, long lines wrapped; "" if they are equal."""
    if before.key == after.key:
        return ""
    lines = difflib.unified_diff(_lines(before), _lines(after), "before", "after", lineterm="")
    return "\n".join(lines)


def _lines(prompt: Prompt) -> list[str]:
    found: list[str] = []
    for name, part in prompt.parts.items():
        found += [f"[{name}]"] if len(prompt.parts) > 1 else []
        for line in part["instructions"].splitlines():
            found += textwrap.wrap(line, _WIDTH) or [""]
        found += [f"field {field['prefix']} {field['description']}" for field in part["fields"]]
        for demo in part["demos"]:
            text = json.dumps(_plain(demo), ensure_ascii=False)
            found += ["demo", *textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]
    return found


def _read(predictor: Any) -> dict[str, Any]:
    signature = predictor.signature
    demos = [demo.toDict() if isinstance(demo, dspy.Example) else demo for demo in predictor.demos]
    # Rows bring ids, sources and more along, which would be saved and never read.
    demos = [{name: demo[name] for name in signature.fields if name in demo} for demo in demos]
    return {**signature.dump_state(), "demos": demos}


def _plain(demo: Mapping[str, Any]) -> dict[str, Any]:
    # As in a prompt: an enum by its value, a date in ISO format.
    plain: dict[str, Any] = to_jsonable_python(dict(demo), fallback=str)
    return plain


_TUNED: Final = "tuned-"
GIVEN: Final = "given"
"""Origin of a prompt that the study names itself."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that may be used.

    Attributes:
        prompt: The whole of it.
        origin: The optimizer that proposed it, and how, such as ``COPRO, depth 1``; or ``GIVEN``.
        score: Mean metric on the train rows that the optimizer judged by, in [0, 1]; None where
            it does not say.
        architecture: The mixture for which it was proposed; None for all.
    """

    prompt: Prompt
    origin: str
    score: float | None = None
    architecture: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"origin": self.origin, "score": self.score, "prompt": self.prompt.to_json()}


class PromptRegistry:
    """Names of prompts, declared once: given ones, and slots that tuning fills later.

    A sampler's choices must not grow, so a slot is a choice from the start. An architecture
    with an empty slot, or with a text that the seat has anyway, is the same as the one with its
    own prompt: ``canonical`` returns that.

    Args:
        own: The prompt that the seat of an aggregator has anyway.
        given: Further prompts by name.
        n_slots: Most prompts that may be added.

    Attributes:
        names: Every choice, empty slots included, the seat's own prompt first.
    """

    def __init__(self, own: Prompt, given: Mapping[str, Prompt], n_slots: int) -> None:
        self.own = own
        self._given = tuple(given)
        slots = (f"{_TUNED}{number}" for number in range(1, n_slots + 1))
        self.names = (OWN_PROMPT, *self._given, *slots)
        # In the order of the names, as slots are filled from the first on.
        self._entries = {name: Candidate(prompt, GIVEN) for name, prompt in given.items()}

    @classmethod
    def of(cls, mixture: Any, texts: Mapping[str, str], n_slots: int) -> PromptRegistry:
        """Return the prompts for the aggregators of a mixture's kind.

        Args:
            mixture: A ``MixtureOfAgents``; gives signature and module of the seat.
            texts: By name; each stands above the caller's own instructions, as the paper's does.
            n_slots: Most prompts that may be added.

        Raises:
            StudyError: If a name is that of a slot or of the seat's own prompt.
        """
        for name in texts:
            if name == OWN_PROMPT or name.startswith(_TUNED):
                raise StudyError(
                    f"`prompts.texts`: {name!r} is taken; use a name other than {OWN_PROMPT!r} "
                    f"that does not begin with {_TUNED!r}."
                )
        names = mixture.architecture.agents[:1]
        module: Any = mixture.with_architecture(Architecture((names,), names[0])).aggregator
        given = {name: Prompt.above(text, module) for name, text in texts.items()}
        return cls(Prompt.of(module), given, n_slots)

    @property
    def has_room(self) -> bool:
        """True if a slot is empty."""
        return len(self._entries) < len(self.names) - 1

    def is_given(self, name: str) -> bool:
        """True if every process that reads the study knows the prompt."""
        return name in self._given

    def canonical(self, architecture: Architecture) -> Architecture:
        """Return the architecture by the name that its prompt goes by, or without one."""
        if architecture.prompt is None:
            return architecture
        entry = self._entries.get(architecture.prompt)
        name = None if entry is None else self.name_of(entry.prompt)
        return replace(architecture, prompt=None if name == OWN_PROMPT else name)

    def put_into(self, module: Any, name: str) -> None:
        """Write the prompt into the module of an aggregator, which is changed.

        Raises:
            StudyError: If there is no such prompt.
        """
        if name not in self._entries:
            known = ", ".join(self._entries) or "none"
            raise StudyError(f"Prompt {name!r} is unknown; known ones are {known}.")
        self._entries[name].prompt.put_into(module)

    def name_of(self, prompt: Prompt) -> str | None:
        """Return the first name of a prompt, or None if it is unknown."""
        if prompt.key == self.own.key:
            return OWN_PROMPT
        same = (name for name, entry in self.entries() if entry.prompt.key == prompt.key)
        return next(same, None)

    def add(self, entry: Candidate) -> str | None:
        """Return the name under which the prompt is known; None if it is new and no slot is empty.

        A new one goes to the first empty slot.
        """
        name = self.name_of(entry.prompt)
        if name is None and self.has_room:
            name = self.names[1 + len(self._entries)]
            self._entries[name] = entry
        return name

    def entries(self) -> Iterator[tuple[str, Candidate]]:
        """Yield every prompt but the seat's own, in the order of ``names``."""
        yield from self._entries.items()

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain JSON data, one object per prompt but the seat's own."""
        return [
            {
                "name": name,
                "origin": entry.origin,
                "architecture": entry.architecture,
                "text": entry.prompt.instructions,
                "demos": [_plain(demo) for demo in entry.prompt.demos],
                "diff": prompt_diff(self.own, entry.prompt),
                "train_score": entry.score,
            }
            for name, entry in self.entries()
        ]
