"""Final answers of texts in one canonical spelling, so that equivalent answers are equal texts.

Marks that are part of the answer stay: signs (-x, ±2, √2, ¬p, <5), grades and names (A+, C#), 5!,
half-open intervals, units, currencies other than the dollar. Ignored are case, quotes, markdown,
simple LaTeX, thousands separators, digits of other scripts and end tokens of chat templates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeAlias

_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = str.maketrans(_SUPERSCRIPTS, "0123456789+-n")
_VULGAR = re.compile("(?P<whole>(?<![0-9])[0-9]*)(?P<part>[\u00bc-\u00be\u2150-\u215e])")
_SPELLINGS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4", "'")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys("\u00ad\u200b\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e", None)
    | {"\u066b": ".", "\u066c": ",", "\u266f": "#", "\u2015": "\u2014"}
    | {"\u2044": "/", "\u2215": "/", "\u2236": ":", "\u2217": "*", "\u2206": "\u03b4"}
    | {"\u21d2": "\u2192", "\u27f6": "\u2192", "\u21d4": "\u2194", "\u22c5": "\u00b7"}
)
_END = re.compile(
    r"(?:\s*(?:<\|[^<>|\s]{1,60}\|>|<(?:s|bos|eos|pad|unk|end_of_turn|start_of_turn)>"
    r"|</[a-z_][\w-]{0,40}>|\[/?inst\]|\[\[ ?## ?\w+ ?## ?\]\]))+\s*\Z"
)
"""Tokens of chat templates, and closing tags, after the answer."""

_LATEX_SIGNS: dict[str, str] = {
    **dict.fromkeys(("ge", "geq", "geqslant"), "\u2265"),
    **dict.fromkeys(("le", "leq", "leqslant"), "\u2264"),
    **dict.fromkeys(("ne", "neq"), "\u2260"),
    **dict.fromkeys(("neg", "lnot"), "\u00ac"),
    **dict.fromkeys(("emptyset", "varnothing"), "\u2205"),
    **dict.fromkeys(("circ", "degree"), "\u00b0"),
    **dict.fromkeys(("left", "right", "displaystyle", "boxed", "fbox"), ""),
    **dict.fromkeys(("quad", "qquad"), " "),
    **dict.fromkeys(("to", "rightarrow", "implies", "longrightarrow"), "\u2192"),
    **dict.fromkeys(("leftrightarrow", "iff"), "\u2194"),
    **dict.fromkeys(("land", "wedge"), "\u2227"),
    **dict.fromkeys(("lor", "vee"), "\u2228"),
    **{"cup": "\u222a", "cap": "\u2229", "in": "\u2208", "notin": "\u2209", "div": "\u00f7"},
    **{"subset": "\u2282", "subseteq": "\u2286", "setminus": "\u2216", "oplus": "\u2295"},
    **{
        name: unicodedata.lookup(f"GREEK SMALL LETTER {name}")
        for name in (
            *("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lamda", "mu", "sigma"),
            *("omega", "phi", "tau"),
        )
    },
    **{"lambda": "\u03bb", "varepsilon": "\u03b5", "varphi": "\u03c6"},
    **{"lt": "<", "gt": ">", "pm": "\u00b1", "mp": "\u2213", "pi": "\u03c0", "infty": "\u221e"},
    **{"times": "\u00d7", "cdot": "\u00b7", "approx": "=", "euro": "\u20ac", "pounds": "\u00a3"},
}
_Rules: TypeAlias = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]


def _rules(*rules: tuple[str, str | Callable[[re.Match[str]], str]]) -> _Rules:
    return tuple((re.compile(pattern), spelling) for pattern, spelling in rules)


_SUBSCRIPT = re.compile(r"_\{?([0-9]{1,3})\}?")
_TEXT = r"\\(?:text|mathrm|mathbf|mathit|textbf|mbox|operatorname|ce|rm)\s*"
_LATEX = _rules(
    (r"\{,\}", ","),
    (r"~(?=\\)", " "),
    (r"(\\(?:begin|end)\{\w+\})\s*|\s*(\\\\|(?<!\\)&)\s*|\s+(?=\\end\{)", r"\1\2"),
    (r"(?<=[0-9])\s*(?=\\[dtc]?frac)", " "),
    (r"(?<=[0-9])\s+(?=\\(?:pi|sqrt)(?![a-z]))", ""),
    (r"(\\(?:text|mathrm)\{[a-z]{1,2}\})_\{?([0-9]{1,3})\}?", r"\1\2"),
    (rf"{_TEXT}\{{([^{{}}]*)\}}", lambda m: _SUBSCRIPT.sub(r"\1", m[1])),
    (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r"\1/\2"),
    (r"(?:\\sqrt\s*\{([^{}]*)\}|(?<![a-z\\])sqrt\s*\(([^()\s]*)\))", "\u221a\\1\\2"),
    (r"\\sqrt\s*(?=\w)", "\u221a"),
    ("\u221a\\s*\\(([^()\\s]*)\\)", "\u221a\\1"),
    (r"\\([a-z]+)(?![a-z])", lambda m: _LATEX_SIGNS.get(m[1], str(m[0]))),
    (r"\^\{([^{}\s]*)\}", r"^\1"),
    ("\\^\u00b0", "\u00b0"),
    (r"\\!|\\(?=[%$#&_{}])", ""),
    (r"\\[,;: ()\[\]]", " "),
)
_UNITS = (
    r"(?:\u00b0[cf]?|[kmc\u03bc]?g|lb|lbs|oz|[kcm\u03bcn]?m[23]?|mi|ft|mph|km/h|m/s|[ap]m|[m\u03bcn]?s|min|"
    r"hr|m?l|[kmg]?j|kcal|[kmg]?w|kwh|[mk]?v|[kmg]?hz|[kmg]?pa|ev|mol|rad|px|[kmgt]b|\u03c9)"
    r"(?:[\^/][\w^/-]+)?"
)
_NUMBER_TEXT = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+"
_POWER_OF_TEN = r"[x\u00d7*\u00b7]\s*10\s?(?:\^|\*\*)\(?([-+]?[0-9]+)\)?"
_LINE = _rules(
    (r"(?<![-=<>])[-=]+>(?!=)", " \u2192 "),
    (r"(?<=[0-9])(\s*)([ap])\.m\b\.?", r"\1\2m"),
    (r"(?<=[0-9])\*\*(?=[0-9])", "^"),
    (r"(?<=[0-9]) : (?=[0-9])", ":"),
    (r"(?<=[0-9]-[0-9]{2})t(?=[0-9]{2}:)", " "),
    (r"(?<=[0-9])\s+(?=[\u03c0\u221a])", ""),
    (r"(?<=[\w)\]])\s*([-+/|&^])=\s*(?=\w)", r"\1="),
    (r"<=|=<", "\u2264"),
    (r">=", "\u2265"),
    (r"!=", "\u2260"),
    (r"\+/?-(?=\s*\.?[0-9])", "\u00b1"),
    (r"</[a-z_][\w-]{0,40}>|(?<![\w)\]])<[a-z_][\w-]{0,40}>(?=\s*[^\s<])", " "),
    (r"(?<![\w)\]])<([^<>\s]+)>(?!\w)", r" \1 "),
    (r"\s*([<>\u2264\u2265\u2260])\s*", r" \1"),
    (r"([\u00b1\u2213\u221a\u00ac])\s+(?=\S)", r"\1"),
    (r"(?<=[0-9\u00b0%])\s+(?=\u00b1[0-9.])", ""),
    (r"\s*([\u2192\u2194])\s*", r" \1 "),
    (r"(?<=[0-9])(?:\u3067\u3059|\u3060|\uc785\ub2c8\ub2e4|\uc774\ub2e4)(?=\W*$)", ""),
    (r"(?<==)\s*-\s+(?=\.?[0-9])", " -"),
    (
        r"(?<![0-9.,/])([0-9]{1,3})((?:[ '_][0-9]{3})+)(?![0-9])(?! ?[/:])",
        lambda m: m[1] + re.sub("[ '_]", "", m[2]),
    ),
    (
        r"(?<![0-9.,/])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9/])",
        lambda m: _mixed(m[1], m[2], m[3]),
    ),
    (rf"(?<![0-9.,])([0-9][0-9.,]*)\s*{_POWER_OF_TEN}", r"\1e\2"),
    (rf"(?<=[0-9])\s+(?={_UNITS}(?![\w]))", ""),
    (r"([\u20a0-\u20bf\u00a2-\u00a5])\s+(?=-?\.?[0-9])", r"\1"),
    (r"(?<=[0-9])\s+(?=[\u20a0-\u20bf\u00a2-\u00a5](?!\w))", ""),
    (
        # In scripts without blanks, a number at the end of a sentence is a word.
        r"(?<=[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3])"
        r"(?=[-\u00b1\u221a]?\.?[0-9][0-9.,/]*[\u4e00-\u9fff]{0,2}\W*$)"
        r"|(?<=[\u662f\u4e3a\u9009])(?=[a-z]\W*$)"
        r"|(?<=\u7b54\u6848\u662f)|(?<=\u7b54\u6848\u4e3a)|(?<=\u7b54\u3048\u306f)",
        " ",
    ),
)
_ALWAYS_GLUED = re.compile(
    r"(?<=\S) *"
    r"(&&|\|\||[\u2227\u2228\u222a\u2229\u2208\u2209\u2282\u2286\u2216\u2295\u00d7\u00f7\u00b7])"
    r" *(?=[^\s(\[{])"
)
_OPERATION = re.compile(
    r"(?<=[\w)\]}!\u00b0%'\u03c0\u221e]) ([-+*/\u00b1]) (?=[\w(\[{|.\u221a\u221e])"
)
_LETTERS = re.compile(r"(?:sin|cos|tan|log|ln|exp|mod|pi)(?=\W|\d|$)|([^\W\d_]{2,})")
_SYMBOLIC = re.compile(r"[0-9)\]^]\W*[a-z]|[a-z]\W*[0-9^(\[]|(?<![^\W_])[f-z](?![^\W_])")
_IDLE_ZEROS = re.compile(r"(?<=[0-9])\.0+(?=[-+*/\u00d7][0-9.]*i?$|i$)")
_CHOICE = re.compile("[a-e]")
"""A letter before a dash may be the chosen option."""
_ARROWS = frozenset("\u2192\u2194")
_SIGN = re.compile(r"[<>=+!/^*]")
"""Signs, in ASCII, that most rules of a line need; the other rules change one of the next texts."""
_PLAIN = ("1 000", "5 kg", "5 p.m.", "3 : 4", "1-02t03:")
_PLAIN_LINE = tuple(rule for rule in _LINE if any(map(rule[0].search, _PLAIN)))
_BULLET = re.compile(r"\s*-\s+(?=\.?[0-9])")
_GROUP = re.compile(
    r"([(\[{]\s*[^\s,;()\[\]{}]{1,60}(?:\s*[,;]\s*[^\s,;()\[\]{}]{1,60})+\s*[)\]}])"
)
"""Intervals, points and lists, if they contain a number."""

_THOUSANDS = re.compile(r"\(-?[0-9]{1,3}(?:,[0-9]{3})+\)|\[-?[0-9]{1,3}(?:,[0-9]{3})+\]")
# A colon separates "answer:42" but not "10:30".
_GAP = re.compile(
    "[\\s()\\[\\]{}\u3010\u3011\u2014\u2248\u2243\u2245\u2261]+|(?<![0-9]):+|:+(?![0-9])"
)
_NUMBER = re.compile(
    rf"(?P<whole>{_NUMBER_TEXT})(?:\.(?P<part>[0-9]+))?(?:e(?P<exponent>[-+]?[0-9]{{1,9}}))?"
)
_MEASURE = re.compile(rf"(?P<number>(?:{_NUMBER_TEXT})(?:\.[0-9]+)?)(?P<unit>{_UNITS})")
_AMOUNT = re.compile(
    r"(?P<before>[\u20a0-\u20bf\u00a2-\u00a5])?(?P<minus>-)?(?P<number>[0-9][0-9,]*(?:\.[0-9]+)?)"
    r"(?P<after>[\u20a0-\u20bf\u00a2-\u00a5])?"
)
_KEPT = frozenset(
    "\u221a\u221b\u221c\u00b1\u2213\u00ac\u221e\u2205\u2202\u2207\u2211\u220f\u222b\u2200\u2203"
    "<>\u2264\u2265\u2260\u00b0\u266d\u2030\u2192\u2194"
)
"""Symbols that are part of a word in any place, as are currencies except the dollar."""

_LONGEST_SHIFT = 400
_MOST_REMEMBERED = 16_384
_LONGEST_REMEMBERED = 2_000
"""Most characters of a cached text: caching many long texts would cost more than it saves."""
_LONGEST_GRADE = 3


def normalise_answer(text: str) -> str:
    """Return the final answer: "The answer is 42.", "**42.0**" and "42" are all "42".

    The answer is the last word or number of the last line that contains one, so of an answer of
    several words only the last is kept; a number and its unit, or an interval, are one word. A
    number is written in one way: no thousands separators, no idle zeros, no exponent up to 400
    digits.

    Args:
        text: Any text, from a model or from a file; no text raises an error.

    Returns:
        The answer; for a text without a word or number its last piece, so "" only for blank text.
        The function is idempotent.
    """
    return _once(_last_read, text)


def normalise_version(text: str) -> str:
    """Return the final answer like `normalise_answer`, but with numbers as written.

    So "3.10" and "3.1", "42.0" and "42", "007" and "7" differ.
    """
    return _last(text, as_written=True)


def normalise_text(text: str) -> str:
    """Return a text without differences in case, blanks and Unicode spelling.

    Unlike `normalise_answer` it keeps every word and mark. The function is idempotent.
    """
    return _once(_folded_words, text)


def answer_words(text: str, *, as_written: bool = False) -> list[str]:
    """Return the words of the last line with words, in order, each in canonical spelling."""
    if len(text) <= _LONGEST_REMEMBERED:
        # A right answer is normalised again for every answer to its question, so it is cached.
        return [*_remembered_words(text, as_written)]
    return _words(text, as_written)


@lru_cache(maxsize=_MOST_REMEMBERED)
def _remembered_words(text: str, as_written: bool) -> tuple[str, ...]:
    return tuple(_words(text, as_written))


def _words(text: str, as_written: bool) -> list[str]:
    plain = _plain(text)
    lines = [line for line in plain.splitlines() if line.strip()]
    if len(lines) == 1:
        lines = [_BULLET.sub("-", lines[0], count=1) if _BULLET.match(lines[0]) else lines[0]]
    for line in reversed(lines):
        words = list(_line_words(line, as_written))
        counted = [n for n, word in enumerate(words) if word not in _ARROWS]
        if counted:
            # An arrow counts only between two words.
            return words[counted[0] : counted[-1] + 1]
    return []


def _once(normalise: Callable[[str], str], text: str) -> str:
    """Return the normalised text, cached for texts that many votes compare."""
    return _remembered(normalise, text) if len(text) <= _LONGEST_REMEMBERED else normalise(text)


@lru_cache(maxsize=_MOST_REMEMBERED)
def _remembered(normalise: Callable[[str], str], text: str) -> str:
    return normalise(text)


def _folded_words(text: str) -> str:
    return " ".join(_folded(text).split())


def _last_read(text: str) -> str:
    return _last(text, as_written=False)


def _last(text: str, *, as_written: bool) -> str:
    for _ in range(8):
        words = answer_words(text, as_written=as_written)
        pieces = words or _folded(text).split()
        last = pieces[-1] if pieces else ""
        if last == text:
            break
        text = last
    return text


def _folded(text: str) -> str:
    """Return the text in one Unicode spelling; the function is idempotent."""
    if text.isascii():
        return text.lower()
    # NFKC alone would turn 10 with a superscript 2 into 102, and 1 with a half sign into 11/2.
    text = _RAISED.sub(lambda m: "^" + m[0].translate(_LOWERED), text)
    text = _VULGAR.sub(_fraction, text)
    # Repeated, as some letters fold into letters that NFKC composes again, and back.
    for _ in range(4):
        text = unicodedata.normalize("NFKC", text.casefold())
    return text


def _fraction(match: re.Match[str]) -> str:
    upper, _, lower = unicodedata.normalize("NFKC", match["part"]).partition("\u2044")
    return _mixed(match["whole"], upper, lower) if match["whole"] else f"{upper}/{lower}"


def _mixed(whole: str, upper: str, lower: str) -> str:
    """Return a whole number and a fraction as one fraction."""
    if max(map(len, (whole, upper, lower))) > 100:
        return f"{whole} {upper}/{lower}"
    return f"{int(whole) * int(lower) + int(upper)}/{lower}"


def _plain(text: str) -> str:
    """Return the folded text with ASCII digits and plain marks, without LaTeX and end tokens."""
    text = _folded(text)
    if not text.isascii():
        text = text.translate(_SPELLINGS)
        text = "".join(
            str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text
        )
    text = "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()
    text = _END.sub("", text) if ">" in text or "]" in text else text
    if any(sign in text for sign in ("\\", "\u221a", "sqrt", "^", "{,}")):
        for pattern, spelling in _LATEX:
            text = pattern.sub(spelling, text)
    return text


def _line_words(line: str, as_written: bool) -> Iterator[str]:
    is_plain = line.isascii() and _SIGN.search(line) is None
    for pattern, spelling in _PLAIN_LINE if is_plain else _LINE:
        line = pattern.sub(spelling, line)
    for segment in re.split(r"(?<![-+/|&^])=+", line):
        parts = _GROUP.split(_glued(segment))
        for number, part in enumerate(parts):
            if number % 2 and (group := _group(part, as_written)):
                yield group
                continue
            pieces = [piece for piece in _GAP.split(part) if piece]
            is_alone = len(pieces) == len(parts) == 1
            yield from filter(None, (_word(piece, as_written, is_alone) for piece in pieces))


def _glued(segment: str) -> str:
    """Return a segment with its operations written without blanks: "x + 1" is "x+1".

    Otherwise the operator between two words would be ignored. A minus, a star or a slash between
    numbers may be a dash, a mark or an "or", unless the segment is only a formula.
    """
    if not segment.isascii() or "&" in segment or "|" in segment:
        segment = _ALWAYS_GLUED.sub(r"\1", segment)
    if not any(f" {operator} " in segment for operator in "-+*/\u00b1"):
        return segment
    pieces = _OPERATION.split(segment)
    is_formula = not any(map(_has_word, pieces[::2]))
    glued = pieces[0]
    for operator, after in zip(pieces[1::2], pieces[2::2], strict=True):
        left, right = glued.rpartition(" ")[2], after.partition(" ")[0]
        is_operation = not (_has_word(left) or _has_word(right)) and (
            is_formula or operator in "+\u00b1" or any(map(_SYMBOLIC.search, (left, right)))
        )
        is_operation &= not (operator == "-" and _CHOICE.fullmatch(left))
        blank = "" if is_operation else " "
        glued += f"{blank}{operator}{blank}{after}"
    return glued


def _has_word(text: str) -> bool:
    return any(match[1] for match in _LETTERS.finditer(text))


def _group(text: str, as_written: bool) -> str:
    """Return an interval or a list as one word; "" if it contains no number or is a number."""
    if not re.search("[0-9\u221e]", text) or _THOUSANDS.fullmatch(text):
        return ""
    items = [_word(item.strip(), as_written) for item in re.split("[,;]", text[1:-1])]
    # Two numbers may be an interval, whose brackets are part of it.
    opening, closing = (text[0], text[-1]) if len(items) == 2 else "()"
    return f"{opening}{';'.join(items)}{closing}"


def _word(piece: str, as_written: bool, is_alone: bool = False) -> str:
    """Return the word in a piece without surrounding marks, "" if it contains no word."""
    first, end = 0, len(piece)
    while first < end and _is_wrapping(piece[first]):
        first += 1
    while end > first and _is_wrapping(piece[end - 1]):
        end -= 1
    before, word, after = piece[:first], piece[first:end], piece[end:]
    if not word:
        return ""
    has_minus = before.count("-") == 1
    may_be_number = not word.isalpha()
    if may_be_number and (number := _NUMBER.fullmatch(word)):
        value = _number(before, number, as_written)
    elif may_be_number and (measure := _MEASURE.fullmatch(word)):
        value = f"{_word(measure['number'], as_written)}{measure['unit']}"
    elif (
        may_be_number
        and (amount := _AMOUNT.fullmatch(word))
        and bool(amount["before"]) != bool(amount["after"])
    ):
        value = (amount["before"] or amount["after"]) + _word(amount["number"], as_written)
        has_minus |= bool(amount["minus"])
    else:
        value = word if as_written else _IDLE_ZEROS.sub("", word)
        if before.endswith("!") and is_alone and word[0].isalpha():
            value = f"!{value}"
    value += _suffix(before, word, after, is_alone)
    return f"-{value}" if has_minus and value != "0" else value


def _suffix(before: str, word: str, after: str, is_alone: bool) -> str:
    """Return the marks after a word that belong to it: A+, B-, C++, F#, 5!"""
    is_short = len(word) <= _LONGEST_GRADE and word[-1].isalnum() and not word[0].isdecimal()
    if after.startswith("+"):
        return "+" * (len(after) - len(after.lstrip("+")))
    if after.startswith("-") and (is_short or "^" in word):
        return "" if after.startswith("--") else "-"
    if after.startswith("#") and is_short and "#" not in before:
        return "#"
    is_factor = is_alone and (word.isdecimal() or len(word) == 1)
    if is_factor and after.startswith("!") and not after.startswith("!!"):
        return "!"
    if is_factor and after == "*" and "*" not in before and word.isalpha():
        return "*"
    return ""


def _number(before: str, number: re.Match[str], as_written: bool) -> str:
    """Return the canonical spelling of this number, unsigned; `before` may hold its point."""
    whole, part = number["whole"].replace(",", ""), number["part"] or ""
    if before.count(".") == 1 and before.endswith(".") and not part:
        whole, part = "0", whole
    exponent = int(number["exponent"] or 0)
    if as_written and not exponent:
        return f"{whole}.{part}" if part else whole
    # As text: int() refuses more than 4300 digits, and Decimal would round.
    if abs(exponent) <= _LONGEST_SHIFT:
        whole, part, exponent = _shifted(whole, part, exponent)
    part = part.rstrip("0")
    value = (whole.lstrip("0") or "0") + ("." + part if part else "")
    return f"{value}e{exponent}" if exponent and value != "0" else value


def _shifted(whole: str, part: str, exponent: int) -> tuple[str, str, int]:
    if exponent >= 0:
        part = part.ljust(exponent, "0")
        return whole + part[:exponent], part[exponent:], 0
    whole = whole.rjust(-exponent, "0")
    return whole[:exponent] or "0", whole[exponent:] + part, 0


def _is_wrapping(character: str) -> bool:
    """Return whether a character is never part of a bare word, such as punctuation and blanks."""
    if character.isalnum():
        return False
    category = unicodedata.category(character)
    if character in _KEPT or (category == "Sc" and character != "$"):
        return False
    return category[0] in "PSZC"
