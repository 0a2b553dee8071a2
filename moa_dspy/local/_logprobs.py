"""Log-probabilities of tokens, between DSPy's words and llama.cpp's."""

from __future__ import annotations

from typing import Any

from dspy.lm15 import TokenLogprob, TopLogprob


def logprob_settings(n_alternatives: int | None) -> dict[str, Any]:
    """Return what asks llama.cpp for log-probabilities; nothing where none are wanted."""
    if n_alternatives is None:
        return {}
    # At 0 llama.cpp gives none at all, not even of the token it chose.
    return {"logprobs": True, "top_logprobs": max(n_alternatives, 1)}


def token_logprobs(
    choice: dict[str, Any], n_alternatives: int | None
) -> tuple[TokenLogprob, ...] | None:
    """Read the natural logarithms, taken before sampling settings, of each token of an answer.

    Args:
        choice: llama.cpp's choice; its alternatives come with the likeliest first and hold the
            chosen token where that is among them.
        n_alternatives: As the request gave it.

    Returns:
        One entry per token, or None where none were asked for or an answer has no token.
    """
    listed = (choice.get("logprobs") or {}).get("content") or ()
    if n_alternatives is None or not listed:
        return None
    return tuple(
        TokenLogprob(
            **_facts(entry),
            top=tuple(TopLogprob(**_facts(e)) for e in entry["top_logprobs"][:n_alternatives]),
        )
        for entry in listed
    )


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "token": entry["token"],
        "logprob": float(entry["logprob"]),
        "bytes": tuple(entry["bytes"]),
        "token_id": entry["id"],
    }
