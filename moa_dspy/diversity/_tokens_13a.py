from __future__ import annotations

import re

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_RULES = (
    # ASCII punctuation other than . , - and the apostrophe stands alone.
    (re.compile(r"""([{|}~\[\\\]^_` !"#$%&()*+:;<=>?@/])"""), r" \1 "),
    # So do periods and commas, unless they sit between digits,
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    # and a dash that follows a digit.
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokens_13a(text: str) -> list[str]:
    """Split a text into the tokens on which BLEU is commonly computed; case is kept.

    The tokenisation of NIST's mteval-v13a as sacrebleu applies it (its ``tok:13a``): made for
    languages that put spaces between words; text in other scripts stays in long tokens.
    """
    line = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        line = line.replace(entity, character)
    line = f" {line} "
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return line.split()
