"""The parts of a model's reply: its thought, its answer, why it ended, and what was said instead.

Endpoints without a reasoning parser send thoughts inside of the text. They are told from the
answer by these rules, so that a text which only mentions a tag stays as it is:

* a tag such as ``<think>`` opens a thought only where the reply begins, after white space or
  another thought. The thought ends at the first closing tag; without one (the token limit cut
  it, as a rule) all of it is thought.
* a tag that is an output field of the request (``<thinking>`` as the XML adapter writes it)
  opens nothing; nor does a rarer one, such as ``<reasoning>``, that the request mentions.
* a closing tag without an opening one, as chat templates cause that open the thought
  themselves, ends a thought if it is not quoted, not in a code block, and either begins its
  line or follows the text before it without a space. A stream waits for it where the model is
  known for it, and before the beginning of the first field where the reply has fields. Where
  nothing is known it waits, if there are fields, after any text before them, else if the text
  begins as models think aloud (``thinks_aloud``).
* channels (``<|channel|>analysis<|message|>...``) count where the reply begins: ``final`` is
  the answer, every other one a thought.

Stored replies are kept as they came; they are split whenever they are read.
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
"""Opening and closing tag of a thought, in lower case; models write them in any case."""
_OPENING: Final = re.compile("|".join(map(re.escape, _TAGS)), re.IGNORECASE)
_CLOSING: Final = re.compile("|".join(map(re.escape, _TAGS.values())), re.IGNORECASE)

_IF_UNASKED: Final = frozenset({"reasoning", "reflection", "scratchpad"})
"""Tags that an asker may have a use for, if the request mentions them."""
_ANSWER_OPENS: Final = ("<|start_response|>", "<|begin_of_solution|>", "<|begin_of_box|>")
"""Tokens that open the answer after a thought."""
_UNSEEN: Final = " \t\r\n\f\v\ufeff\u200b"
"""What may stand before a reply: white space, a byte order mark."""

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
"""Channels whose tokens the server took out."""
_BARE_BEGUN: Final = re.compile(r"\s*analysis(?=[A-Z])")

_BEGINNINGS: Final = (
    *_TAGS,
    "<|channel|>",
    "<|start|>",
    *(f"{name}<|message|>" for name in ("analysis", "commentary", "final")),
)
REFUSAL: Final = "refusal"
"""Field of a message, and of the event that ends a stream, with what the model will not do."""
_MARKER: Final = re.compile(r"\[\[ ## \w+ ## \]\]")
_XML_FIELD: Final = re.compile(r"<(\w+)>\\n\{\w+\}")
_BRACE: Final = re.compile(r"\{")
_FENCE: Final = re.compile(r"\s+|```\w*")
"""What may stand before the first field of an answer."""
_QUOTES: Final = "`'\"\u201c\u201d\u2018\u2019«»([{"


@dataclass(frozen=True, slots=True)
class SplitReply:
    """A reply's text, split.

    Attributes:
        thought: Without white space around it; "" where there is none.
        answer: The rest. Without a thought it is the whole text, unchanged.
        is_settled: Whether every text that follows belongs to the answer.
        is_unopened: Whether the thought had a closing tag only.
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
        request: What was asked, as text or JSON: tags that are its output fields do not count.
        is_whole: Whether the reply has ended. Of one that goes on, only what can no longer
            change is returned.
        is_opened: Whether the chat template opens the thought: then nothing before the closing
            tag is returned until the reply has ended. None means that it is not known: then the
            same holds for a text that ``thinks_aloud``.
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
    """Return an answer without the token that opens it; None of one that may yet be the token."""
    lower = answer.lower()
    if token := next(filter(lower.startswith, _ANSWER_OPENS), None):
        return answer[len(token) :].lstrip()
    may_follow = not is_whole and any(one.startswith(lower) for one in _ANSWER_OPENS)
    return None if may_follow else answer


def _joined(thoughts: list[str]) -> str:
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts)))


def _without_begun(text: str, closing: str) -> str:
    """Return ``text`` without what may be the beginning of ``closing`` at its end."""
    lower = text.lower()
    longest = min(len(closing) - 1, len(text))
    n = next((n for n in range(longest, 0, -1) if lower.endswith(closing[:n])), 0)
    return text[: len(text) - n]


def _may_begin(text: str) -> bool:
    """True if a thought may follow: ``text`` is empty, or the beginning of an opening tag."""
    lower = text.lower()
    return any(one.startswith(lower) for one in _BEGINNINGS)


def _split_unopened(text: str, request: str, is_whole: bool, is_opened: bool | None) -> SplitReply:
    if is_whole:
        return _split_at_closing(text, len(text), request, is_whole=True) or SplitReply("", text)
    field = None if is_opened else _field_pattern(request)
    begun = None if field is None else field.search(text)
    if field is None:
        waits = is_opened or (is_opened is None and thinks_aloud(text))
    else:
        # A thought may rehearse the fields, and of an unknown model so may any text before them.
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
"""Beginnings of texts that go on with anything but a letter; a blank stands for that."""
_ALOUD_UNSPACED: Final = (
    *("好", "嗯", "首先", "用户", "我", "让我", "现在", "这道题", "这个问题", "题目", "问题"),
    *("まず", "ユーザー", "質問", "うーん", "사용자", "먼저", "음"),
)
"""Those of languages without blanks."""


def thinks_aloud(text: str) -> bool:
    """Return whether ``text`` begins as models think aloud, or may yet.

    No rule tells the thought of an unknown model from its answer before the tag that ends it:
    thoughts run to thousands of characters. Three ways were weighed for the first stream of a
    model of which nothing is known. To wait for the end of every such stream, or for so many
    characters, makes all models slow at first for the few that need it. To show what comes makes
    the thought the answer. So the text itself decides, at its first word or two: "Okay, so the
    user ..." waits for its tag or its end, however long, and "Paris" is passed on at once. An
    answer that begins like this comes whole, once: from then on the model is known.
    """
    begun = text.lstrip().lower().replace("\u2019", "'")
    unspaced = any(one.startswith(begun[: len(one)]) for one in _ALOUD_UNSPACED)
    return unspaced or any(map(partial(_begins_with, begun), _ALOUD))


def _begins_with(text: str, words: str) -> bool:
    if words.startswith(text):
        return True
    after = text[len(words) - 1 : len(words)]
    return text.startswith(words[:-1]) and not (after.isalnum() or after == "'")


@lru_cache(maxsize=16)  # asked at every piece of a stream
def _field_pattern(request: str) -> re.Pattern[str] | None:
    """Return what begins the first output field of an answer, or None where the text is all of it.

    What comes before it is shown to no reader of fields, so a stream loses nothing if that part
    waits until it is known to be a thought or not.
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
        # Some servers keep the tokens of the thought and drop those before the answer.
        answers.append(_CHANNEL_TOKEN.sub("", text[end:]))
        return SplitReply(_joined(thoughts), "".join(answers).strip())
    thoughts = [_TOKEN_BEGUN.sub("", thought) for thought in thoughts]
    answer = _TOKEN_BEGUN.sub("", "".join(answers)).strip()
    return SplitReply(_joined(thoughts), answer, is_settled=False)


class ReplySplitter:
    """Splits a reply that arrives in pieces.

    Args:
        request: As of ``split_reply``.
        is_opened: As of ``split_reply``.
    """

    def __init__(self, request: str = "", *, is_opened: bool | None = False) -> None:
        self._request, self._is_opened = request, is_opened
        self._text, self._split = "", SplitReply("", "", is_settled=False)

    def feed(self, text: str) -> tuple[str, str]:
        """Return what follows of the thought and of the answer when ``text`` arrives."""
        if self._split.is_settled:
            return "", text
        self._text += text
        return self._advance(is_whole=False)

    def flush(self) -> tuple[str, str]:
        """Return what was held back: the reply has ended."""
        return ("", "") if self._split.is_settled else self._advance(is_whole=True)

    def _advance(self, *, is_whole: bool) -> tuple[str, str]:
        before = self._split
        self._split = split_reply(
            self._text, request=self._request, is_whole=is_whole, is_opened=self._is_opened
        )
        thought = self._split.thought[len(before.thought) :]
        return thought, self._split.answer[len(before.answer) :]


_HALF: Final = re.compile("[\ud800-\udfff]")
"""Half of a character: some servers split an emoji over two chunks."""


def without_half(text: str) -> tuple[str, str]:
    """Return ``text`` with the halves of surrogate pairs put together, and a half at its end."""
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    text = text[: len(text) - len(half)]
    if _HALF.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return text, half


BROKEN_OFF: Final = frozenset({"abort", "error", "insufficient_system_resource"})
"""Reasons to end that say that the endpoint failed while it answered."""
_FINISH: Final = re.compile(r'"finish_reason":"(\w+)"')
_TO_LOOK_AT: Final = re.compile(
    rf"{_OPENING.pattern}|{_CLOSING.pattern}|<\|message\|>|assistantfinal"
    r'|"type":"(?:thinking|refusal)"|"text":"(?:\\[nrt]| )*"',
    re.IGNORECASE,
)
"""Anything without which a stored reply is plain text, so that it need not be parsed."""


@dataclass(frozen=True, slots=True)
class ReplyFacts:
    """Facts of a stored reply beside its text.

    Attributes:
        finish_reason: Why it ended: ``stop``, ``length`` (the token limit), ``content_filter``,
            ``tool_call``; None where there is no reply.
        no_answer: Why it holds no answer, in one line; None where it holds one.
    """

    finish_reason: str | None = None
    no_answer: str | None = None


def reply_facts(response: str | None, request: str = "") -> ReplyFacts:
    """Return the facts of a stored reply.

    Args:
        response: Canonical JSON, as calls are stored; None is a call that failed.
        request: Canonical JSON of what was asked.
    """
    if response is None:
        return ReplyFacts()
    # Canonical JSON: the reason stands before the message, and quotes inside texts are escaped.
    found = _FINISH.search(response)
    finish = found[1] if found else None
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
    """Return in one line why a message holds no answer, or None if it holds one.

    Args:
        parts: Kind and text of each part of the message.
        finish_reason: Why the reply ended.
        request: As of ``split_reply``.
    """
    if any(kind not in ("text", "thinking", "refusal") for kind, _ in parts):
        return None
    text = "".join(text for kind, text in parts if kind == "text")
    split = split_reply(text, request=request)
    if split.answer.strip():
        return None
    why = _WHY_ENDED.get(finish_reason or "", "")
    refusal = " ".join(text for kind, text in parts if kind == "refusal").split()
    if refusal:
        return f"{_REFUSED}{' '.join(refusal)}"
    if split.thought or any(kind == "thinking" for kind, _ in parts):
        return f"The model answered with reasoning only, and no text{why}."
    return f"The model answered with an empty text{why}."


def is_refusal(no_answer: str) -> bool:
    """Return whether a reason why there is no answer is the model's refusal."""
    return no_answer.startswith(_REFUSED)


_REFUSED: Final = "The model refused: "
_WHY_ENDED: Final = {
    "length": " (`max_tokens` ended it)",
    "content_filter": " (the endpoint's content filter ended it)",
}


def why_broken_off(reply: Any, finish_reason: str | None = None) -> str | None:
    """Return in the endpoint's words that it broke off a reply or stream; None if it did not."""
    choice = _first_choice(reply)
    given, said = choice.get("finish_reason"), choice.get("error")
    reason = given if given in BROKEN_OFF else finish_reason
    if reason not in BROKEN_OFF and not said:
        return None
    words = (said.get("message") if isinstance(said, Mapping) else said) or "no reason given"
    return f"The endpoint broke off its answer (finish_reason {reason or given!r}): {words}"


def _first_choice(reply: Any) -> Mapping[str, Any]:
    choices = reply.get("choices") if isinstance(reply, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else {}
