"""The parts of a model's reply: its thought, its answer, its reason to end and any refusal.

Endpoints without a reasoning parser send thoughts inside the text. These rules separate them from
the answer and leave a text that only mentions a tag unchanged:

* a tag such as ``<think>`` opens a thought only where the reply begins, after white space or
  another thought. The thought ends at the first closing tag; without a closing tag (usually cut by
  the token limit) the whole text is thought.
* a tag that is an output field of the request (``<thinking>`` as the XML adapter writes it) opens
  no thought; nor does a rarer tag, such as ``<reasoning>``, that the request mentions.
* a closing tag without an opening tag (the chat template opened the thought) ends a thought if it
  is not quoted, not in a code block, and either begins its line or follows the text before it
  without a space. A stream waits for it if the model is known to do this, and before the first
  field if the reply has fields. If the model is not known, the stream waits after any text before
  the first field or, in a reply without fields, if the text begins like a thought
  (``thinks_aloud``).
* channels (``<|channel|>analysis<|message|>...``) count where the reply begins: ``final`` is the
  answer, every other channel a thought.

Stored replies are kept unchanged; they are split whenever they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

_TAGS: Final = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<reflection>": "</reflection>",
    "<scratchpad>": "</scratchpad>",
    "<antthinking>": "</antthinking>",
    "<seed:think>": "</seed:think>",
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
    "<|start_thinking|>": "<|end_thinking|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|channel>thought": "<channel|>",
}
"""Opening and closing tags of thoughts, in lower case; models write them in any case."""
_OPENING: Final = re.compile("|".join(map(re.escape, _TAGS)), re.IGNORECASE)
_CLOSING: Final = re.compile("|".join(map(re.escape, _TAGS.values())), re.IGNORECASE)

_IF_UNASKED: Final = frozenset({"reasoning", "reflection", "scratchpad"})
"""Tags that are part of the answer if the request mentions them."""
_ANSWER_OPENS: Final = ("<|start_response|>", "<|begin_of_solution|>", "<|begin_of_box|>")
"""Tokens that open the answer after a thought."""
_UNSEEN: Final = " \t\r\n\f\v\ufeff\u200b"
"""Characters that may precede a reply: white space, a byte order mark."""

_CHANNELS: Final = re.compile(
    r"\s*(?:(?:<\|start\|>\w*)?<\|channel\|>|(?:analysis|commentary|final)<\|message\|>)"
)
_CHANNEL: Final = re.compile(
    r"(?:<\|channel\|>\s*)?(?P<name>analysis|commentary|final)\b"
    r"(?:(?!<\|message\|>|<\|channel\|>).)*<\|message\|>"
    r"(?P<text>.*?)(?=<\|(?:end|return|call|start|channel)\|>|\Z)",
    re.DOTALL,
)
_CHANNEL_TOKEN: Final = re.compile(r"<\|start\|>\w*|<\|\w+\|>")
_TOKEN_BEGUN: Final = re.compile(r"<(?:\|\w*\|?)?\Z")
_BARE_CHANNELS: Final = re.compile(
    r"\s*analysis(?=[A-Z])(?P<thought>.*?)assistantfinal(?P<answer>.*)", re.DOTALL
)
"""Names of channels whose special tokens the server removed."""
_BARE_BEGUN: Final = re.compile(r"\s*analysis(?=[A-Z])")

_BEGINNINGS: Final = (
    *_TAGS,
    "<|channel|>",
    "<|start|>",
    *(f"{name}<|message|>" for name in ("analysis", "commentary", "final")),
)
REFUSAL: Final = "refusal"
"""Field with the model's refusal, in a message and in the last event of a stream."""
_MARKER: Final = re.compile(r"\[\[ ## \w+ ## \]\]")
_XML_FIELD: Final = re.compile(r"<(\w+)>\\n\{\w+\}")
_BRACE: Final = re.compile(r"\{")
_FENCE: Final = re.compile(r"\s+|```\w*")
"""Text that may precede the first field of an answer."""
_QUOTES: Final = "`'\"\u201c\u201d\u2018\u2019«»([{"


@dataclass(frozen=True, slots=True)
class SplitReply:
    """A reply's text, split.

    Attributes:
        thought: The thought without white space around it; "" if there is none.
        answer: The rest of the text; without a thought, the whole text unchanged.
        is_settled: Whether every text that follows belongs to the answer.
        is_unopened: Whether the thought has only a closing tag.
    """

    thought: str
    answer: str
    is_settled: bool = True
    is_unopened: bool = False


def split_reply(
    text: str, *, request: str = "", is_whole: bool = True, is_opened: bool | None = False
) -> SplitReply:
    """Split ``text`` by the rules above.

    Args:
        text: A reply, or the beginning of one.
        request: The request as text or JSON: tags that are its output fields do not count.
        is_whole: Whether the reply has ended. If not, only parts that can no longer change are
            returned.
        is_opened: Whether the chat template opens the thought: then nothing before the closing tag
            is returned until the reply has ended. None means unknown: then this applies only to a
            text that ``thinks_aloud``.
    """
    if _CHANNELS.match(text):
        return _split_channels(text, is_whole)
    if (bare := _BARE_CHANNELS.match(text)) is not None:
        return SplitReply(bare["thought"].strip(), bare["answer"].lstrip())
    thoughts, rest = [], text.lstrip(_UNSEEN)
    while (tag := _OPENING.match(rest)) is not None and not _is_field(tag[0], request):
        closing = _TAGS[tag[0].lower()]
        end = re.compile(re.escape(closing), re.IGNORECASE).search(rest, tag.end())
        if end is None:
            begun = rest[tag.end() :]
            thoughts.append(begun if is_whole else _without_begun(begun, closing))
            return SplitReply(_joined(thoughts), "", is_settled=False)
        thoughts.append(rest[tag.end() : end.start()])
        rest = rest[end.end() :].lstrip()
    if not is_whole and (_may_begin(rest) or (not thoughts and _BARE_BEGUN.match(text))):
        return SplitReply(_joined(thoughts), "", is_settled=False)
    if thoughts:
        answer = _opened(rest, is_whole)
        return SplitReply(_joined(thoughts), answer or "", is_settled=bool(answer))
    return _split_unopened(text, request, is_whole, is_opened)


def _is_field(tag: str, request: str) -> bool:
    name = tag.strip("</>")
    is_asked = f"<{name}>" in request
    return is_asked and (f"{{{name}}}" in request or name.lower() in _IF_UNASKED)


def _opened(answer: str, is_whole: bool) -> str | None:
    """Return an answer without its opening token; None if it may be an incomplete token."""
    lower = answer.lower()
    if token := next(filter(lower.startswith, _ANSWER_OPENS), None):
        return answer[len(token) :].lstrip()
    may_follow = not is_whole and any(beginning.startswith(lower) for beginning in _ANSWER_OPENS)
    return None if may_follow else answer


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts)))


def _without_begun(text: str, closing: str) -> str:
    """Return ``text`` without a possible beginning of ``closing`` at its end."""
    lower = text.lower()
    longest = min(len(closing) - 1, len(text))
    n = next((n for n in range(longest, 0, -1) if lower.endswith(closing[:n])), 0)
    return text[: len(text) - n]


def _may_begin(text: str) -> bool:
    """True if a thought may follow: ``text`` is empty, or the beginning of an opening tag."""
    lower = text.lower()
    return any(beginning.startswith(lower) for beginning in _BEGINNINGS)


def _split_unopened(text: str, request: str, is_whole: bool, is_opened: bool | None) -> SplitReply:
    if is_whole:
        return _split_at_closing(text, len(text), request, is_whole=True) or SplitReply("", text)
    field = None if is_opened else _field_pattern(request)
    begun = None if field is None else field.search(text)
    if field is None:
        waits = is_opened or (is_opened is None and thinks_aloud(text))
    else:
        # A thought may contain the fields; for an unknown model any text before them may be a
        # thought.
        waits = begun is None or (is_opened is None and bool(_FENCE.sub("", text[: begun.start()])))
    if waits or field:
        end = len(text) if begun is None or waits else begun.start()
        if (split := _split_at_closing(text, end, request, is_whole=False)) is not None:
            return split
    return SplitReply("", "", is_settled=False) if waits else SplitReply("", text)


def _split_at_closing(text: str, end: int, request: str, *, is_whole: bool) -> SplitReply | None:
    for tag in _CLOSING.finditer(text, 0, end):
        if not is_whole and tag.end() == len(text):
            break  # What follows may be a quotation mark.
        if _ends_thought(text, tag, request):
            thought = text[: tag.start()].strip()
            answer = _opened(text[tag.end() :].lstrip(), is_whole) or ""
            return SplitReply(thought, answer, is_settled=bool(answer), is_unopened=True)
    return None


_ALOUD: Final = tuple(
    f"{word} "
    for word in (
        *("ah", "all right", "alright", "first", "given", "got it", "hm", "hmm", "hmmm"),
        *("i", "i'd", "i'll", "i'm asked", "i'm given", "i'm going", "i'm supposed"),
        *("i'm thinking", "i'm trying", "i've", "let me", "let us", "let's", "lets"),
        *("looking at", "maybe"),
        *("my task", "need to", "now", "oh", "ok", "okay", "so", "thinking", "this question"),
        *("to answer", "to calculate", "to compute", "to determine", "to figure", "to find"),
        *("to get", "to solve", "user", "wait", "we", "we'll", "we're", "we've", "well"),
        *("the answer should", "the previous", "the problem", "the prompt", "the question"),
        *("the references", "the responses", "the task", "the user"),
        *("also", "bien", "bon", "d'accord", "die frage", "der nutzer", "el usuario", "ich"),
        *("je", "l'utilisateur", "la pregunta", "lass mich", "veamos", "voyons", "zunächst"),
        *("давай", "давайте", "итак", "мне", "пользователь", "сначала", "так", "хорошо"),
    )
)
"""Beginnings of thoughts; a blank stands for any character but a letter."""
_ALOUD_UNSPACED: Final = (
    *("好", "嗯", "首先", "用户", "我", "让我", "现在", "这道题", "这个问题", "题目", "问题"),
    *("まず", "ユーザー", "質問", "うーん", "사용자", "먼저", "음"),
)
"""Beginnings in languages without blanks."""


def thinks_aloud(text: str) -> bool:
    """Return whether ``text`` begins like a model's thought, or is too short to tell.

    No rule separates the thought of an unknown model from its answer before the closing tag, and
    thoughts have thousands of characters. For the first stream of an unknown model, three ways were
    considered. Waiting for its end, or for a number of characters, slows all models down for the
    few that need it. Passing everything on shows the thought as the answer. So the first word or
    two decide: "Okay, so the user ..." waits for its tag or its end, however long, and "Paris" is
    passed on at once. An answer that begins like a thought is delayed once: then the model is
    known.
    """
    begun = text.lstrip().lower().replace("\u2019", "'")
    unspaced = any(phrase.startswith(begun[: len(phrase)]) for phrase in _ALOUD_UNSPACED)
    return unspaced or any(map(partial(_begins_with, begun), _ALOUD))


def _begins_with(text: str, words: str) -> bool:
    if words.startswith(text):
        return True
    after = text[len(words) - 1 : len(words)]
    return text.startswith(words[:-1]) and not (after.isalnum() or after == "'")


@lru_cache(maxsize=16)  # called for every piece of a stream
def _field_pattern(request: str) -> re.Pattern[str] | None:
    """Return the pattern that begins the first output field, or None if the text has no fields.

    Text before it is not shown to readers of fields, so a stream can hold that part back without
    loss until it is known whether it is a thought.
    """
    if "[[ ## completed ## ]]" in request:
        return _MARKER
    names = [name for name in _XML_FIELD.findall(request) if f"{{{name}}}" in request]
    if names:
        return re.compile("|".join(f"<{re.escape(name)}>" for name in dict.fromkeys(names)))
    return _BRACE if "Outputs will be a JSON object" in request else None


def _ends_thought(text: str, tag: re.Match[str], request: str) -> bool:
    before, after = text[: tag.start()], text[tag.end() : tag.end() + 1]
    if _OPENING.search(before) or _is_field(tag[0], request) or before.count("```") % 2:
        return False
    if before[-1:] in tuple(_QUOTES) or after in tuple("`'\"\u201d\u2019»"):
        return False
    begins_line = not before.rpartition("\n")[2].strip()
    return begins_line or not before[-1].isspace()


def _split_channels(text: str, is_whole: bool) -> SplitReply:
    thoughts: list[str] = []
    answers: list[str] = []
    end = 0
    for channel in _CHANNEL.finditer(text):
        end = channel.end()
        (answers if channel["name"] == "final" else thoughts).append(channel["text"])
    if is_whole:
        # Some servers keep the special tokens of the thought and drop those before the answer.
        answers.append(_CHANNEL_TOKEN.sub("", text[end:]))
        return SplitReply(_joined(thoughts), "".join(answers).strip())
    thoughts = [_TOKEN_BEGUN.sub("", thought) for thought in thoughts]
    answer = _TOKEN_BEGUN.sub("", "".join(answers)).strip()
    return SplitReply(_joined(thoughts), answer, is_settled=False)


class ReplySplitter:
    """Splits a reply that arrives in pieces.

    Args:
        request: As for ``split_reply``.
        is_opened: As for ``split_reply``.
    """

    def __init__(self, request: str = "", *, is_opened: bool | None = False) -> None:
        self._request, self._is_opened = request, is_opened
        self._text, self._split = "", SplitReply("", "", is_settled=False)

    def feed(self, text: str) -> tuple[str, str]:
        """Return the new parts of the thought and of the answer when ``text`` arrives."""
        if self._split.is_settled:
            return "", text
        self._text += text
        return self._advance(is_whole=False)

    def flush(self) -> tuple[str, str]:
        """Return the parts that were held back, at the end of the reply."""
        return ("", "") if self._split.is_settled else self._advance(is_whole=True)

    def _advance(self, *, is_whole: bool) -> tuple[str, str]:
        before = self._split
        self._split = split_reply(
            self._text, request=self._request, is_whole=is_whole, is_opened=self._is_opened
        )
        thought = self._split.thought[len(before.thought) :]
        return thought, self._split.answer[len(before.answer) :]


_HALF: Final = re.compile("[\ud800-\udfff]")
"""A lone surrogate: some servers split an emoji over two chunks."""


def without_half(text: str) -> tuple[str, str]:
    """Return ``text`` with surrogate pairs joined, and separately a lone surrogate at its end."""
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    text = text[: len(text) - len(half)]
    if _HALF.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return text, half


BROKEN_OFF: Final = frozenset({"abort", "error", "insufficient_system_resource"})
"""Finish reasons that mean that the endpoint failed during the answer."""
_FINISH: Final = re.compile(r'"finish_reason":"(\w+)"')
_TO_LOOK_AT: Final = re.compile(
    rf"{_OPENING.pattern}|{_CLOSING.pattern}|<\|message\|>|assistantfinal"
    r'|"type":"(?:thinking|refusal)"|"text":"(?:\\[nrt]| )*"',
    re.IGNORECASE,
)
"""Strings without any of which a stored reply is plain text and need not be parsed."""


@dataclass(frozen=True, slots=True)
class ReplyFacts:
    """Facts about a stored reply besides its text.

    Attributes:
        finish_reason: Reason to end: ``stop``, ``length`` (the token limit), ``content_filter``,
            ``tool_call``; None if there is no reply.
        no_answer: Reason in one line why it holds no answer; None if it holds an answer.
    """

    finish_reason: str | None = None
    no_answer: str | None = None


def reply_facts(response: str | None, request: str = "") -> ReplyFacts:
    """Return the facts of a stored reply.

    Args:
        response: Canonical JSON, as calls are stored; None is a failed call.
        request: Canonical JSON of the request.
    """
    if response is None:
        return ReplyFacts()
    # In canonical JSON the reason precedes the message, and quotes inside texts are escaped.
    match = _FINISH.search(response)
    finish = match[1] if match else None
    if not _TO_LOOK_AT.search(response):
        return ReplyFacts(finish)
    message = json.loads(response).get("message") or {}
    return ReplyFacts(finish, why_no_answer(list(_plain_parts(message)), finish, request=request))


def _plain_parts(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part in message.get("parts") or ():
        yield str(part.get("type")), str(part.get("text") or "")


def why_no_answer(
    parts: list[tuple[str, str]], finish_reason: str | None = None, *, request: str = ""
) -> str | None:
    """Return in one line why a message holds no answer, or None if it holds an answer.

    Args:
        parts: Kind and text of each part of the message.
        finish_reason: The reply's reason to end.
        request: As for ``split_reply``.
    """
    if any(kind not in ("text", "thinking", "refusal") for kind, _ in parts):
        return None
    text = "".join(text for kind, text in parts if kind == "text")
    split = split_reply(text, request=request)
    if split.answer.strip():
        return None
    cause = _WHY_ENDED.get(finish_reason or "", "")
    refusal = " ".join(text for kind, text in parts if kind == "refusal").split()
    if refusal:
        return f"{_REFUSED}{' '.join(refusal)}"
    if split.thought or any(kind == "thinking" for kind, _ in parts):
        return f"The model answered with reasoning only, and no text{cause}."
    return f"The model answered with an empty text{cause}."


def is_refusal(no_answer: str) -> bool:
    """Return whether the reason for a missing answer is the model's refusal."""
    return no_answer.startswith(_REFUSED)


_REFUSED: Final = "The model refused: "
_WHY_ENDED: Final = {
    "length": " (`max_tokens` ended it)",
    "content_filter": " (the endpoint's content filter ended it)",
}


def why_broken_off(reply: Any, finish_reason: str | None = None) -> str | None:
    """Return the endpoint's message that it failed during a reply or stream; None if it did not."""
    choice = _first_choice(reply)
    choice_reason, error = choice.get("finish_reason"), choice.get("error")
    reason = choice_reason if choice_reason in BROKEN_OFF else finish_reason
    if reason not in BROKEN_OFF and not error:
        return None
    words = (error.get("message") if isinstance(error, Mapping) else error) or "no reason given"
    shown = f" (finish_reason {reason or choice_reason!r})" if reason or choice_reason else ""
    return f"The endpoint broke off its answer{shown}: {words}"


def _first_choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}
