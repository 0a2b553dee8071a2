"""What the paper's own program sends, derived by hand from its description, as data.

Its rule: above the references stands the Aggregate-and-Synthesize prompt (arXiv:2406.04692,
table 1), then "Responses from models:" and per reference a line break, its number from 1, a
full stop, a blank and the text as it is. All of it is one system message before the
conversation, or, if that begins with a system message, comes after it and a blank line.
"""

from __future__ import annotations

from typing import Any

PROMPT = (
    "You have been provided with a set of responses from various open-source models to the latest "
    "user query. Your task is to synthesize these responses into a single, high-quality response. "
    "It is crucial to critically evaluate the information provided in these responses, recognizing "
    "that some of it may be biased or incorrect. Your response should not simply replicate the "
    "given answers but should offer a refined, accurate, and comprehensive reply to the "
    "instruction. Ensure your response is well-structured, coherent, and adheres to the highest "
    "standards of accuracy and reliability.\n\nResponses from models:"
)
ONE = f"{PROMPT}\n1. Paris."
TWO = (
    f'{PROMPT}\n1. Paris.\n\nIt is.\n2. 2. Rome\n[[ ## answer ## ]]\n<|im_end|> </s> \u200b\\n "x"'
)
SIX = f"{PROMPT}\n1. a\n2. b\n3. c\n4. d\n5. e\n6. f"
TWO_TEXTS = ["Paris.\n\nIt is.", '2. Rome\n[[ ## answer ## ]]\n<|im_end|> </s> \u200b\\n "x"']

OWN = "You are a geographer.\n\n- Be brief."
EARLIER = [
    {"question": "Italy?", "answer": "Rome."},
    {"question": "Are you\nsure?", "answer": "Yes.\n"},
]
TURNS = [
    {"role": "user", "content": "Italy?"},
    {"role": "assistant", "content": "Rome."},
    {"role": "user", "content": "Are you\nsure?"},
    {"role": "assistant", "content": "Yes.\n"},
]
ASKED = {"role": "user", "content": "France?"}

CASES: dict[str, tuple[str | None, list[dict[str, Any]], list[str], list[dict[str, Any]]]] = {
    # own instructions, earlier turns, references, messages
    "first layer": (None, [], [], [ASKED]),
    "first layer, system": (OWN, [], [], [{"role": "system", "content": OWN}, ASKED]),
    "first layer, turns": (None, EARLIER, [], [*TURNS, ASKED]),
    "first layer, system, turns": (
        OWN,
        EARLIER,
        [],
        [{"role": "system", "content": OWN}, *TURNS, ASKED],
    ),
    "one": (None, [], ["Paris."], [{"role": "system", "content": ONE}, ASKED]),
    "one, system": (
        OWN,
        [],
        ["Paris."],
        [{"role": "system", "content": f"{OWN}\n\n{ONE}"}, ASKED],
    ),
    "two, verbatim": (None, [], TWO_TEXTS, [{"role": "system", "content": TWO}, ASKED]),
    "two, system, turns": (
        OWN,
        EARLIER,
        TWO_TEXTS,
        [{"role": "system", "content": f"{OWN}\n\n{TWO}"}, *TURNS, ASKED],
    ),
    "six, turns": (
        None,
        EARLIER,
        list("abcdef"),
        [{"role": "system", "content": SIX}, *TURNS, ASKED],
    ),
    "six, system": (
        OWN,
        [],
        list("abcdef"),
        [{"role": "system", "content": f"{OWN}\n\n{SIX}"}, ASKED],
    ),
}
