"""How a call lies in a row: its texts packed, everything else as it is."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from moa_dspy.calls._call import Call

COLUMNS = tuple(f.name for f in fields(Call))

_SHORTEST_PACKED = 64
"""Bytes; what is shorter does not gain."""
_PACKED = b"x"
"""First byte of what zlib writes, and of no JSON text."""
_LEVEL = 6
# Most of a short request and response is what all have in common. Part of the format: a changed
# dictionary could not read what was packed with this one. The most common stands last.
_DICTIONARY = (
    b'{"code":"","failure":"","logprobs":[],"tool_calls":[],"type":"thinking","thinking":"'
    b"Respond with the corresponding output fields, starting with the field `[[ ## answer ## ]]`"
    b", and then ending with the marker for `[[ ## completed ## ]]`."
    b"Your input fields are:\\n1. `question` (str):\\n"
    b"Your output fields are:\\n1. `answer` (str):\\n"
    b"All interactions will be structured in the following way, with the appropriate values filled "
    b"in.\\n\\n[[ ## question ## ]]\\n{question}\\n\\n[[ ## reasoning ## ]]\\n{reasoning}\\n\\n"
    b"[[ ## answer ## ]]\\n{answer}\\n\\n[[ ## completed ## ]]\\n"
    b"In adhering to this structure, your objective is: \\n        Given the fields `question`, "
    b"produce the fields `answer`."
    b"You have been provided with a set of responses from various open-source models to the latest "
    b"user query. Your task is to synthesize these responses into a single, high-quality response. "
    b"It is crucial to critically evaluate the information provided in these responses, "
    b"recognizing that some of it may be biased or incorrect. Your response should not simply "
    b"replicate the given answers but should offer a refined, accurate, and comprehensive reply "
    b"to the instruction. Ensure your response is well-structured, coherent, and adheres to the "
    b"highest standards of accuracy and reliability.\\n\\nResponses from models:\\n1. "
    b'{"finish_reason":"length","finish_reason":"stop","message":{"parts":[{"text":"","type":"text"}'
    b'],"role":"assistant"},"model":"agent/","usage":{"input_tokens":100,"output_tokens":10,'
    b'"total_tokens":110}}'
    b'{"config":{"max_tokens":1024,"temperature":0.7},"messages":[{"parts":[{"text":"'
    b'","type":"text"}],"role":"user"}],"system":"'
)
_NOT_IN_A_TEXT = re.compile(r"[\x00\ud800-\udfff]")

_values = attrgetter(*COLUMNS)
_REQUEST, _RESPONSE = COLUMNS.index("request"), COLUMNS.index("response")
_FAILURE = COLUMNS.index("failure")


def packed(text: str) -> bytes:
    """Return ``text`` (JSON) as short as it gets; see ``unpacked``."""
    plain = text.encode()
    if len(plain) < _SHORTEST_PACKED and plain[:1] != _PACKED:
        return plain
    packer = zlib.compressobj(_LEVEL, zdict=_DICTIONARY)
    return packer.compress(plain) + packer.flush()


def unpacked(data: bytes | str) -> str:
    """Return the text of what ``packed`` returned; stores of version 1 hold texts as they are."""
    if isinstance(data, str):
        return data
    if data[:1] == _PACKED:
        data = zlib.decompressobj(zdict=_DICTIONARY).decompress(data)
    return data.decode()


def to_row(call: Call) -> tuple[Any, ...]:
    """Return the values of ``call`` in the order of ``COLUMNS``."""
    row = list(_values(call))
    row[_REQUEST] = packed(call.request)
    row[_RESPONSE] = None if call.response is None else packed(call.response)
    # An endpoint's words may hold what no database takes as text.
    row[_FAILURE] = call.failure and _NOT_IN_A_TEXT.sub(_escaped, call.failure)
    return tuple(row)


def from_row(row: Sequence[Any]) -> Call:
    """Return the call whose columns ``row`` holds, in the order of ``COLUMNS``."""
    key, agent, identity, sample, request, response, *rest = row
    text = None if response is None else unpacked(response)
    return Call(key, agent, identity, sample, unpacked(request), text, *rest)


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
