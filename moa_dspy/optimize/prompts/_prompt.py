"""What an optimizer may change in a seat: instructions, texts of fields, demos; as plain data."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import dspy

_WIDTH: Final = 96


@dataclass(frozen=True, slots=True)
class PredictorPrompt:
    """The prompt of one predictor.

    Attributes:
        instructions: The task.
        fields: Prefix and description of every field, in the signature's order.
        demos: Worked examples, with the signature's own fields only.
    """

    instructions: str
    fields: tuple[tuple[str, str], ...]
    demos: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompts of a module's predictors, by the names that DSPy gives them."""

    parts: Mapping[str, PredictorPrompt]

    @classmethod
    def of(cls, module: Any) -> Prompt:
        """Read the prompt of a module, such as ``program.aggregator``."""
        return cls({name: _read(one) for name, one in module.named_predictors()})

    def put_into(self, module: Any) -> None:
        """Write the prompt into a module of the same kind, which is changed."""
        for name, predictor in module.named_predictors():
            part = self.parts[name]
            texts = [{"prefix": prefix, "description": desc} for prefix, desc in part.fields]
            state = {"instructions": part.instructions, "fields": texts}
            predictor.signature = predictor.signature.load_state(state)
            predictor.demos = [dict(demo) for demo in part.demos]

    @property
    def instructions(self) -> str:
        """The instructions of every predictor, a blank line between two."""
        return "\n\n".join(part.instructions for part in self.parts.values())

    @property
    def demos(self) -> tuple[Mapping[str, Any], ...]:
        """The demos of every predictor."""
        return tuple(demo for part in self.parts.values() for demo in part.demos)

    @property
    def key(self) -> str:
        """What is equal for equal prompts, and for no others."""
        return json.dumps(self.to_json(), sort_keys=True)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            name: {
                "instructions": part.instructions,
                "fields": [list(field) for field in part.fields],
                "demos": [_plain(demo) for demo in part.demos],
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
        for line in part.instructions.splitlines():
            found += textwrap.wrap(line, _WIDTH) or [""]
        found += [f"field {prefix} {desc}" for prefix, desc in part.fields]
        for demo in part.demos:
            text = json.dumps(_plain(demo), ensure_ascii=False)
            found += ["demo", *textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]
    return found


def _read(predictor: Any) -> PredictorPrompt:
    signature = predictor.signature
    texts = [field.json_schema_extra for field in signature.fields.values()]
    return PredictorPrompt(
        instructions=signature.instructions,
        fields=tuple((str(text["prefix"]), str(text["desc"])) for text in texts),
        demos=tuple(_trimmed(demo, signature) for demo in predictor.demos),
    )


def _trimmed(demo: Any, signature: Any) -> dict[str, Any]:
    # Rows bring ids, sources and more along, which would be saved and never read.
    values = demo.toDict() if isinstance(demo, dspy.Example) else dict(demo)
    return {name: values[name] for name in signature.fields if name in values}


def _plain(demo: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(demo), default=str))
    return plain
