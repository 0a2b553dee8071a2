"""What a mixture returns: the user's own fields, and beside them how they came about."""

from __future__ import annotations

from html import escape
from typing import Any

import dspy

from moa_dspy.response import Answer, Response


class MixturePrediction(dspy.Prediction):
    """A prediction with the signature's output fields, and ``mixture``, an ``Answer``.

    ``mixture`` is not one of the fields, so that what walks over a prediction's fields
    (an evaluation's table, a vote, a saved file) meets only the user's own.
    """

    def __init__(self, *args: Any, mixture: Answer | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        base = args[0] if args else kwargs.get("base")
        self._mixture = mixture or getattr(base, "_mixture", None)

    @classmethod
    def of(cls, answer: Answer) -> MixturePrediction:
        """Return the prediction that a mixture's answer is."""
        return cls(**answer.final.values, mixture=answer)

    @property
    def mixture(self) -> Answer:
        """Every agent's response, price, seconds and failure on the way to the answer."""
        if self._mixture is None:
            raise AttributeError("mixture")
        return self._mixture

    def _repr_html_(self) -> str:
        """Show the fields and every agent's response as tables, for notebooks."""
        fields = [
            f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in self.items()
        ]
        agents = "" if self._mixture is None else _agents_html(self._mixture)
        return f"<table>{''.join(fields)}</table>{agents}"


def _agents_html(answer: Answer) -> str:
    names = ("seat", "agent", "calls", "tokens", "seconds", "usd", "cut", "response")
    heads = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(_row(where, response) for where, response in answer.seats)
    return f"<table><tr>{heads}</tr>{rows}</table><p>{escape(answer.summary)}</p>"


def _row(where: str, response: Response) -> str:
    cells = [
        where,
        response.agent,
        str(response.calls),
        str(response.prompt_tokens + response.completion_tokens),
        f"{response.seconds:.2f}",
        f"{response.usd:.6f}",
        str(len(response.cuts) or ""),
        response.text if response.has_answer else f"failed: {response.failure}",
    ]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
