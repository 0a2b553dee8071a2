"""Plain chat: an adapter without a reply format, and the guard of references for every adapter.

Small models follow plain chat, and no tokens are spent on a format. Its ``guarded`` layout shows
references below the question, each as one quoted line. Its ``paper`` layout is, byte for byte,
what the paper's own program sends: references stand unguarded in the system message, so a
response can address its reader as the system does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import dspy
from dspy.utils.exceptions import AdapterParseError

from moa_dspy.adapters.guard import (
    encodable,
    is_history,
    is_streamed,
    neutral,
    quoted,
    speaking_adapter,
    user_content,
    without_closing,
    without_thought,
)
from moa_dspy.errors import ArchitectureError
from moa_dspy.signatures import REFERENCES, REFERENCES_HEADING, separated

Message: TypeAlias = dict[str, Any]
MessageContent: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""Makes inputs the content of a user message."""


def only_output(signature: Any) -> str:
    """Return the name of the signature's one text output.

    Raises:
        ArchitectureError: If it has more than one output, or one that is not text.
    """
    fields = signature.output_fields
    if len(fields) != 1 or next(iter(fields.values())).annotation is not str:
        shown = ", ".join(f"{name}: {field.annotation}" for name, field in fields.items())
        raise ArchitectureError(
            f"Plain chat needs exactly one text output, but the signature has {shown}; "
            "choose the chat, json or xml adapter."
        )
    return str(next(iter(fields)))


def earlier_turns(
    signature: Any,
    demos: list[dict[str, Any]],
    inputs: Mapping[str, Any],
    *,
    content: MessageContent,
) -> Iterator[Message]:
    """Yield what stands before the question: demos, each after its own history, then history.

    A demo without an input or without the output is left out.

    Raises:
        ArchitectureError: If the signature has no single text output, or a history is not
            one or has a turn with none of the signature's fields.
    """
    output = only_output(signature)
    for demo in demos:
        turn = list(_turn(signature, demo, output, content))
        if len(turn) == 2:
            yield from _history(signature, demo, output, content)
            yield from turn
    yield from _history(signature, inputs, output, content)


def _turn(
    signature: Any, values: Mapping[str, Any], output: str, content: MessageContent
) -> Iterator[Message]:
    input_names = (
        n for n, f in signature.input_fields.items() if n != REFERENCES and not is_history(f)
    )
    if any(name in values for name in input_names):
        yield {"role": "user", "content": content(values)}
    if values.get(output) is not None:
        yield {"role": "assistant", "content": str(values[output])}


def _history(
    signature: Any, values: Mapping[str, Any], output: str, content: MessageContent
) -> Iterator[Message]:
    for name, field in signature.input_fields.items():
        if name not in values or not is_history(field, values[name]):
            continue
        for values_then in _earlier(name, values[name]):
            turn = list(_turn(signature, values_then, output, content))
            if not turn:
                fields = ", ".join([*signature.input_fields, output])
                present = ", ".join(map(str, values_then)) or "nothing"
                raise ArchitectureError(
                    f"A turn in `{name}` must have at least one of the fields {fields}, but it "
                    f"has {present}."
                )
            yield from turn


def _earlier(name: str, history: Any) -> list[dict[str, Any]]:
    if history is None:
        return []
    if not isinstance(history, dspy.History):
        raise ArchitectureError(f"`{name}` must be a dspy.History, but got {history!r:.100}.")
    return list(history.messages)


def guarded_messages(
    signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
) -> list[Message]:
    """Return instructions as system message, then demos, history and the question as turns."""

    def content(values: Mapping[str, Any]) -> Any:
        return user_content(signature, values, below=_references(values))

    return [
        {"role": "system", "content": signature.instructions},
        *earlier_turns(signature, demos, inputs, content=content),
        {"role": "user", "content": content(inputs)},
    ]


def _references(values: Mapping[str, Any]) -> str:
    references = values.get(REFERENCES)
    if not references:
        return ""
    numbered = [f"{n}. {quoted(text)}" for n, text in enumerate(references, start=1)]
    return "\n".join([REFERENCES_HEADING, *numbered])


def paper_messages(
    signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
) -> list[Message]:
    """Return the caller's conversation, with the references at the end of its system message.

    There is a system message only if the caller has one of their own, or references are
    read. Demos are turns before the conversation; what they read is left out.
    """

    def content(values: Mapping[str, Any]) -> Any:
        return user_content(signature, values)

    own, prompt = separated(signature)
    references = inputs.get(REFERENCES) or ()
    system = "\n\n".join([*filter(None, [own]), *_aggregation(prompt, references)])
    return [
        *([{"role": "system", "content": system}] if system else []),
        *earlier_turns(signature, demos, inputs, content=content),
        {"role": "user", "content": content(inputs)},
    ]


def _aggregation(prompt: str, references: Sequence[str]) -> list[str]:
    if not references:
        return []
    numbered = [f"\n{n}. {encodable(text)}" for n, text in enumerate(references, start=1)]
    return [*filter(None, [prompt]), f"{REFERENCES_HEADING}{''.join(numbered)}"]


LAYOUTS: Final[dict[str, Callable[[Any, list[dict[str, Any]], dict[str, Any]], list[Message]]]] = {
    "guarded": guarded_messages,
    "paper": paper_messages,
}
"""Layouts of plain chat by name."""


class PlainChat(dspy.Adapter):
    """Sends inputs as they are, as the user's message; the reply as it is is the output.

    A ``dspy.History`` becomes turns of user and assistant, an image or another of DSPy's
    own types the content parts that DSPy would send. An input is named where it stands
    beside another of its kind. For signatures with one text output; a reply is never
    asked for twice.

    Args:
        layout: ``guarded``: references stand below the question, numbered, each one
            quoted line that nothing inside can leave. ``paper``: byte for byte what the
            paper's own program sends, references unguarded in the system message.
        verbatim: Whether replies are taken as they come, as the paper's example programs take
            them: blanks and end tokens around a reply stay, and an empty reply of a proposer is
            an empty item of the references. Otherwise these are removed, and an empty reply is
            a failure that is left out. A final answer that is empty is always a failure.
        callbacks: As of any DSPy adapter.

    Raises:
        ArchitectureError: If there is no such layout. When called: if the signature has more
            than one output, or one that is not text, or a history does not fit it.
    """

    def __init__(
        self,
        layout: str = "guarded",
        *,
        verbatim: bool = False,
        callbacks: list[Any] | None = None,
    ) -> None:
        super().__init__(callbacks)
        if layout not in LAYOUTS:
            choices = ", ".join(sorted(LAYOUTS))
            raise ArchitectureError(f"Unknown `layout` {layout!r}; known ones are {choices}.")
        self.layout, self.verbatim = layout, verbatim

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        """Ask, and return the one output of each reply."""
        try:
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)
        except AdapterParseError:
            # `parse` takes every text; DSPy does not call it for an empty one.
            if not self.verbatim:
                raise
            return [{only_output(signature): ""}]

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        """``__call__`` for coroutines."""
        try:
            return await super().acall(lm, lm_kwargs, signature, demos, inputs)
        except AdapterParseError:
            if not self.verbatim:
                raise
            return [{only_output(signature): ""}]

    def format(
        self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the chat messages for one request."""
        return LAYOUTS[self.layout](signature, demos, inputs)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """Return the whole reply as the one output; blanks and end tokens go unless verbatim."""
        if is_streamed():
            completion = without_thought(signature, completion)
        text = completion if self.verbatim else without_closing(completion).strip()
        return {only_output(signature): text}


_TAG: Final = re.compile(r"<(?=[/!?]|[^\W\d])")
_KEY: Final = re.compile(
    r"""(["'`]\s*|[{,][^{},:]{0,80}\b[^\W\d]\w*["'`\s.)-]{0,9}):(?!//)"""  # "answer": or {answer:
)
_STRAIGHT: Final = str.maketrans("\u201c\u201d", '""')
_FULL_WIDTH_COLON: Final = "\uff1a"


def guarded_references(texts: Sequence[str], *, adapter: Any = None) -> list[str]:
    """Return references as the adapter that will speak may safely read them.

    DSPy shows a list of texts as one line of JSON. So what stands in it is already inside
    of quotes; the guard is for a reader that writes down what it read, in its own format.
    Plain chat guards on its own, in one of its layouts.

    Args:
        texts: The references, original.
        adapter: None means the one that DSPy will take. A subclass has the guard of its parent,
            an adapter that may ask again in JSON also that of JSON, and an unknown one has all.
    """
    adapter = speaking_adapter(adapter)
    if isinstance(adapter, PlainChat):
        return list(texts)
    is_known = isinstance(adapter, dspy.ChatAdapter | dspy.JSONAdapter | dspy.XMLAdapter)
    asks_again = getattr(adapter, "use_json_adapter_fallback", False)
    read = [neutral(text) for text in texts]
    if isinstance(adapter, dspy.JSONAdapter) or asks_again or not is_known:
        read = [json_text(text) for text in read]
    if isinstance(adapter, dspy.XMLAdapter) or not is_known:
        read = [xml_text(text) for text in read]
    return read


def xml_text(text: str) -> str:
    """Return ``text`` as the content of an XML element; in a tag, a space follows the ``<``.

    So a reader may copy it as it is, and even one that decodes it copies no tag.
    """
    spaced = _TAG.sub("< ", text)
    return spaced.replace("&", "&amp;").replace("<", "&lt;").replace("]]>", "]]&gt;")


def json_text(text: str) -> str:
    """Return ``text`` with full-width colons after what could be a key, and straight quotes.

    A valid JSON reply may quote anything. One that is not valid, by a comma too many or
    prose around it, is repaired by DSPy, and that takes keys from inside of texts.
    """
    return _KEY.sub(rf"\1{_FULL_WIDTH_COLON}", text.translate(_STRAIGHT))
