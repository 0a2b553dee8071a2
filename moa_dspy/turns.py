"""A program that asks a mixture the turns of a conversation, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import dspy

from moa_dspy.adapters.guard import is_history
from moa_dspy.errors import ArchitectureError, DataError
from moa_dspy.mixture import MixtureOfAgents

HISTORY: Final = "history"
"""Input that holds the earlier turns, where the signature has none of its own."""


def with_history(signature: Any) -> Any:
    """Return a signature of one text in and one out with an input for the earlier turns.

    Raises:
        ArchitectureError: If it has more inputs or outputs than these.
    """
    fields = signature.input_fields
    asked = [name for name, field in fields.items() if not is_history(field)]
    if len(asked) != 1 or len(signature.output_fields) != 1:
        raise ArchitectureError(
            "A conversation is asked with one input and one output, such as 'question -> answer', "
            f"but the signature has the inputs {', '.join(fields) or 'none'} and the outputs "
            f"{', '.join(signature.output_fields) or 'none'}."
        )
    if len(fields) > 1:
        return signature
    return signature.prepend(HISTORY, dspy.InputField(), dspy.History)


class TurnByTurn(dspy.Module):
    """A conversation: each turn is asked of the whole mixture, with all that was said before.

    What was said before are the user's turns and the mixture's own answers to them, so that the
    second answer of another architecture may follow another first one. The prediction has, in the
    field of the signature's output, a list with one answer per turn.

    Args:
        mixture: Has one text in, one out, and an input of type ``dspy.History``; see
            ``with_history``.
        turns: Name of the input with the user's turns, a list of texts.

    Raises:
        ArchitectureError: If the mixture's signature does not fit.
    """

    def __init__(self, mixture: MixtureOfAgents, *, turns: str = "turns") -> None:
        super().__init__()
        fields = with_history(mixture.signature).input_fields
        if len(mixture.signature.input_fields) < len(fields):
            raise ArchitectureError(
                "The mixture's signature needs an input of type dspy.History for the earlier "
                f"turns, but has only {', '.join(mixture.signature.input_fields)}."
            )
        self.mixture: Any = mixture
        self.turns = turns
        # ``history`` is DSPy's own: what a module was asked.
        (self.history_input,) = (name for name, field in fields.items() if is_history(field))
        (self.question_input,) = (name for name in fields if name != self.history_input)
        (self.output_field,) = mixture.signature.output_fields

    def inputs_of(self, turns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the mixture's inputs for each turn, without any answer."""
        asked = [{self.question_input: turn} for turn in turns]
        return [
            {self.history_input: dspy.History(messages=asked[:n]), **one}
            for n, one in enumerate(asked)
        ]

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the answers to all turns; a turn that nothing answered ends it with an error.

        Raises:
            DataError: If the input of the turns is missing or no list of texts.
            LayerFailedError: If too few models answered a turn.
        """
        earlier: list[dict[str, Any]] = []
        for turn in self._asked(inputs):
            history = dspy.History(messages=list(earlier))
            given = {self.history_input: history, self.question_input: turn}
            answer = self.mixture(**given)[self.output_field]
            earlier.append({self.question_input: turn, self.output_field: answer})
        return dspy.Prediction(**{self.output_field: [turn[self.output_field] for turn in earlier]})

    def _asked(self, inputs: dict[str, Any]) -> Sequence[str]:
        found = inputs.get(self.turns)
        is_list = isinstance(found, list | tuple) and len(found) > 0
        if not is_list or not all(isinstance(turn, str) for turn in found or ()):
            raise DataError(f"`{self.turns}` must be a list of texts, but got {found!r:.100}.")
        return tuple(found or ())
