"""What makes a text harmless in one reply format, beside what makes it so in all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import dspy

from moa_dspy.adapters._guard import neutral
from moa_dspy.adapters._plain import PlainChat

_TAG: Final = re.compile(r"<(?=[/!?]|[^\W\d])")
_KEY: Final = re.compile(
    r"""(["'`]\s*|[{,][^{},:]{0,80}\b[^\W\d]\w*["'`\s.)-]{0,9}):(?!//)"""  # "answer": or {answer:
)
_STRAIGHT: Final = str.maketrans("\u201c\u201d", '""')
_FULL_WIDTH_COLON: Final = "\uff1a"


def guarded(texts: Sequence[str], *, adapter: Any) -> list[str]:
    """Return references as the adapter may safely read them; None is DSPy's default, chat.

    DSPy shows a list of texts as one line of JSON. So what stands in it is already inside
    of quotes; the guard is for a reader that writes down what it read, in its own format.
    Plain chat guards on its own, in one of its layouts.
    """
    if isinstance(adapter, PlainChat):
        return list(texts)
    harmless = [neutral(text) for text in texts]
    if isinstance(adapter, dspy.XMLAdapter):
        return [xml_text(text) for text in harmless]
    if isinstance(adapter, dspy.JSONAdapter):
        return [json_text(text) for text in harmless]
    return harmless


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
