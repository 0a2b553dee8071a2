from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.references import count_tokens

TRUE: dict[str, tuple[str, int, int]] = {
    # text, tokens of SmolLM2-135M-Instruct and of Qwen2.5-0.5B-Instruct (llama.cpp, no BOS)
    "prose": (
        "The mixture reads all answers, weighs them and writes a better one; it does not simply "
        "copy the longest.",
        22,
        22,
    ),
    "code": (
        "def total(values: list[int]) -> int:\n"
        "    return sum(value for value in values if value > 0)\n",
        28,
        24,
    ),
    "markdown": (
        "## Result\n\n- **Paris** is the capital of France.\n"
        "- See [the list](https://example.org/capitals?page=2).\n",
        35,
        30,
    ),
    "digits": ("2026-01-05 12:34:56 3.14159265 1000000", 38, 38),
    "chinese": ("北京是中国的首都，人口超过两千万。", 30, 10),
    "russian": ("Москва — столица России.", 21, 9),
    "emoji": ("👩‍💻🎉 👍🏽 ❤️", 21, 10),
    "base64": (
        "TWl4dHVyZS1vZi1BZ2VudHMgcmVhZHMgYWxsIGFuc3dlcnMgYW5kIHdyaXRlcyBhIGJldHRlciBvbmUu",
        62,
        58,
    ),
}


@pytest.mark.parametrize("kind", TRUE)
def test_the_estimate_is_a_tenth_below_two_tokenizers_at_most(kind: str) -> None:
    text, *true = TRUE[kind]
    assert 0.9 * max(true) <= count_tokens(text) <= 1.5 * max(true)


@given(st.text(), st.integers(0, 50))
def test_a_start_never_has_more_tokens_than_the_text(text: str, n: int) -> None:
    assert count_tokens(text[:n]) <= count_tokens(text)


def test_nothing_is_no_token_and_half_a_surrogate_pair_is_some() -> None:
    assert count_tokens("") == 0
    assert count_tokens("\ud83d") > 0
