"""Aggregators that quote what they were sent, one per layout, and what they meant to say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from xml.sax.saxutils import escape, unescape

import dspy

from moa_dspy.adapters import PlainChat, guarded_references
from moa_dspy.signatures import with_references
from moa_dspy.testing import scripted_pool

HONEST = "Lyon"
"""The second reference; the first is the hostile one."""

SEEN = re.compile(r"<[|\uff5c]|</?\w+>|\[/?(?:INST|SYS|TOOL)|\[\|")
"""Tokens of chat templates and tags, as no reader may see them in a reference."""


def own_words(quote: str) -> str:
    return f"The models said:\n{quote}\nI agree with none."


@dataclass(frozen=True)
class Layout:
    """How one adapter is attacked.

    Attributes:
        adapter: What builds the prompt and reads the reply.
        sent: Reads the references out of a prompt, as they were sent.
        reply: Writes a reply that quotes, in the adapter's format.
        meant: What the reasoning of such a reply is.
        outputs: The signature's output fields.
        unguarded: An adapter that builds the prompt where the guard is the adapter's own.
    """

    adapter: Any
    sent: Callable[[str], list[str]]
    reply: Callable[[str], str]
    meant: Callable[[str], str] = own_words
    outputs: str = "reasoning, answer"
    unguarded: Any = None
    asked: list[str] = field(default_factory=list)

    @cached_property
    def signature(self) -> Any:
        return with_references(dspy.Signature(f"question -> {self.outputs}", "Be brief."))

    @cached_property
    def lm(self) -> Any:
        def script(prompt: str) -> str:
            self.asked.append(prompt)
            return self.reply("\n".join(self.sent(prompt)))

        return scripted_pool({"reader": script}).lm("reader")

    @cached_property
    def fair(self) -> list[dict[str, Any]]:
        inputs = {"question": "Capital?", "references": ["Paris", HONEST]}
        messages: list[dict[str, Any]] = self.adapter.format(self.signature, [], inputs)
        return messages

    def faults(self, text: str, *, is_guarded: bool = True) -> list[str]:
        """Say in what the hostile text was more than data, in the prompt or in the reply."""
        adapter = self.adapter if is_guarded else self.unguarded or self.adapter
        read = [text, HONEST]
        inputs = {
            "question": "Capital?",
            "references": guarded_references(read, adapter=adapter) if is_guarded else read,
        }
        try:
            built = adapter.format(self.signature, [], inputs)
            return [*self._in_the_prompt(built), *self._in_the_reply(built, adapter, inputs)]
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]

    def _in_the_prompt(self, built: list[dict[str, Any]]) -> list[str]:
        content, expected = str(built[-1]["content"]), str(self.fair[-1]["content"])
        start = expected.index("Paris")
        shown = content[start : content.find(HONEST)]
        checks = {
            "roles": [m["role"] for m in built] == [m["role"] for m in self.fair],
            "system": built[0] == self.fair[0],
            "kind of content": isinstance(built[-1]["content"], str),
            "question": content[:start] == expected[:start],
            "lines": len(content.splitlines()) == len(expected.splitlines()),
            "number of references": len(self.sent(content)) == 2,
            "tokens": not SEEN.search(shown),
            "unseen": all(c.isprintable() or c in "\n\u3000\u00a0" for c in shown),
        }
        return [name for name, is_kept in checks.items() if not is_kept]

    def _in_the_reply(
        self, built: list[dict[str, Any]], adapter: Any, inputs: dict[str, Any]
    ) -> list[str]:
        self.asked.clear()
        with dspy.context(lm=self.lm, adapter=adapter):
            prediction = dspy.Predict(self.signature)(**inputs)
        quote = self.meant("\n".join(self.sent(str(built[-1]["content"]))))
        values = {"reasoning": quote, "answer": "Paris"}
        if self.outputs == "answer":
            values = {"answer": quote}
        altered = [name for name, value in values.items() if prediction.get(name) != value]
        return [*altered, *(["asked again"] if len(self.asked) > 1 else [])]


def _listed(prompt: str) -> list[str]:
    line = prompt.partition("[[ ## references ## ]]\n")[2].partition("\n")[0]
    read: list[str] = json.loads(line)
    return read


def _in_xml(prompt: str) -> list[str]:
    read: list[str] = json.loads(prompt.partition("<references>\n")[2].partition("\n")[0])
    return read


def _numbered(prompt: str) -> list[str]:
    below = prompt.partition("Responses from models:\n")[2]
    lines = [line.partition(". ") for line in below.splitlines()]
    return [text for number, _, text in lines if number.isdecimal()]


def _chat(quote: str) -> str:
    return (
        f"[[ ## reasoning ## ]]\n{own_words(quote)}\n\n[[ ## answer ## ]]\nParis\n\n"
        "[[ ## completed ## ]]\n"
    )


def _fields(quote: str) -> dict[str, str]:
    return {"reasoning": own_words(quote), "answer": "Paris"}


def _xml(reasoning: str) -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\nParis\n</answer>"


LAYOUTS: dict[str, Layout] = {
    "plain": Layout(
        PlainChat(),
        _numbered,
        own_words,
        outputs="answer",
        unguarded=PlainChat(layout="paper"),
    ),
    "chat": Layout(dspy.ChatAdapter(), _listed, _chat),
    "json": Layout(dspy.JSONAdapter(), _listed, lambda quote: json.dumps(_fields(quote))),
    "json in a fence": Layout(
        dspy.JSONAdapter(),
        _listed,
        lambda quote: f"Sure:\n```json\n{json.dumps(_fields(quote), indent=2)}\n```\nDone.",
    ),
    # A reader that copies what it sees, and one that knows what it means.
    "xml": Layout(
        dspy.XMLAdapter(),
        _in_xml,
        lambda quote: _xml(own_words(quote)),
        lambda quote: unescape(own_words(quote)),
    ),
    "xml escaped": Layout(dspy.XMLAdapter(), _in_xml, lambda quote: _xml(escape(own_words(quote)))),
}
