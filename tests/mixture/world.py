"""A toy world for what is built around a mixture: who was asked what can be read off its log.

Proposers a and b sign their answers. The aggregator c is right on even numbers, and on all
of them when its instructions say CAREFULLY or it is shown an example. The outsider g is the
LM of the settings: a plain predictor and the optimizers ask it, and no seat ever should.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import dspy

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

ARCHITECTURE: Final = "a + b > synthesize(c)"
SEATS: Final = {"layers[0].proposers[0]": "a", "layers[0].proposers[1]": "b", "aggregator": "c"}

_CHAT: Final = "Respond with the corresponding output fields"
_JSON: Final = "Respond with a JSON object"
_FIELD = re.compile(r"`(?:\[\[ ## )?(\w+)(?: ## \]\])?`")
_QUESTION = re.compile(r"\[\[ ## question ## \]\]\n(.*)")

Script = Callable[[str], str]


@dataclass
class Log:
    """What each model was asked for, in order; one entry per request that reached it."""

    asked: list[tuple[str, str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, name: str, what: str, prompt: str) -> None:
        with self.lock:
            self.asked.append((name, what, prompt))

    def by(self, name: str) -> Counter[str]:
        """Return how often ``name`` was asked for which field."""
        return Counter(what for agent, what, _ in self.asked if agent == name)

    def prompts(self, name: str) -> list[str]:
        """Return all that ``name`` was sent."""
        return [prompt for agent, _, prompt in self.asked if agent == name]

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of requests that reached each model."""
        return {name: self.by(name).total() for name in "abcg"}


def reply(prompt: str, fields: Mapping[str, object]) -> str:
    """A reply in the format that the prompt asks for: the chat adapter's or the JSON adapter's."""
    if prompt.rfind(_JSON) > prompt.rfind(_CHAT):
        return json.dumps(dict(fields))
    blocks = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


def wanted(prompt: str) -> list[str]:
    """The output fields that an adapter asks for at the end of a prompt."""
    end = prompt[max(prompt.rfind(_JSON), prompt.rfind(_CHAT)) :]
    return [name for name in _FIELD.findall(end) if name != "completed"]


def number(prompt: str) -> int:
    """The number of the task in the last question of a prompt."""
    found = re.search(r"\d+", _QUESTION.findall(prompt)[-1])
    assert found is not None
    return int(found[0])


def proposer(name: str, log: Log) -> Script:
    def script(prompt: str) -> str:
        log.note(name, wanted(prompt)[-1], prompt)
        return reply(prompt, {w: f"{name} says Q{number(prompt)}" for w in wanted(prompt)})

    return script


def aggregator(name: str, log: Log) -> Script:
    def script(prompt: str) -> str:
        log.note(name, wanted(prompt)[-1], prompt)
        # Without an example the question stands in the system message's form and at the end.
        has_example = len(_QUESTION.findall(prompt)) > 2
        knows = number(prompt) % 2 == 0 or has_example or "CAREFULLY" in prompt
        return reply(prompt, {"answer": f"Q{number(prompt)}" if knows else "unknown"})

    return script


def outsider(name: str, log: Log, texts: Mapping[str, str]) -> Script:
    def script(prompt: str) -> str:
        names = wanted(prompt)
        log.note(name, names[-1], prompt)
        if names == ["rewritten"]:
            return reply(prompt, {"rewritten": f"Q{number(prompt)}"})
        return reply(prompt, {what: texts.get(what, f"made {what}") for what in names})

    return script


@dataclass
class World:
    """Three agents in a pool of their own, and an outsider."""

    log: Log
    pool: Pool
    outsider: Any

    def mixture(self, **options: Any) -> MixtureOfAgents:
        return MixtureOfAgents("question -> answer", ARCHITECTURE, pool=self.pool, **options)


def make_world(
    texts: Mapping[str, str] | None = None,
    *,
    temperature: float = 0.0,
    last: Callable[[str, Log], Script] = aggregator,
) -> World:
    log = Log()
    scripts = {"a": proposer("a", log), "b": proposer("b", log), "c": last("c", log)}
    pool = scripted_pool(scripts, temperature=temperature, reads_all=True)
    outside = {"g": outsider("g", log, texts or {})}
    return World(log, pool, scripted_pool(outside, temperature=0.7, reads_all=True).lm("g"))


class Outer(dspy.Module):
    """A larger program: the settings' LM rewrites the question, then a mixture answers it."""

    def __init__(self, mixture: Any) -> None:
        super().__init__()
        self.rewrite = dspy.Predict("question -> rewritten")
        self.mixture = mixture

    def forward(self, question: str) -> Any:
        rewritten = self.rewrite(question=question).rewritten
        return self.mixture(question=rewritten)

    async def aforward(self, question: str) -> Any:
        rewritten = (await self.rewrite.acall(question=question)).rewritten
        return await self.mixture.acall(question=rewritten)


def program_of(world: World, where: str) -> Any:
    """Return a mixture ``alone``, or ``inside`` a larger program."""
    return world.mixture() if where == "alone" else Outer(world.mixture())


def seats_of(program: Any) -> dict[str, Any]:
    """Return the predictors of a program's mixture by name."""
    return dict(getattr(program, "mixture", program).named_predictors())


def rows(n: int = 6) -> list[Any]:
    examples = [dspy.Example(question=f"task {i}", answer=f"Q{i}") for i in range(n)]
    return [example.with_inputs("question") for example in examples]


def exact(
    example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> float:
    return float(prediction.answer == example.answer)
