"""What is no such thing is refused where it is given, by name, value and what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy import Agent, Budget, MixtureOfAgents
from moa_dspy.errors import ArchitectureError, PoolError, StudyError
from moa_dspy.optimize import Limits, SearchSpace
from moa_dspy.testing import scripted_pool
from tests.servers.chat import Reply, serving

SIGNATURE = "question -> answer"


def mixture(architecture: Any = "a + b > vote", **options: Any) -> Any:
    pool = scripted_pool({name: "Paris" for name in "ab"})
    signature = options.pop("signature", SIGNATURE)
    return MixtureOfAgents(signature, architecture, **{"pool": pool, **options})


def from_layers(layers: Any) -> Any:
    return MixtureOfAgents(SIGNATURE, layers=layers, aggregator=dspy.LM("openai/mini"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mixture(3), "`architecture` must be an Architecture or its text, .* got 3"),
        (lambda: mixture([["a"], ["b"]]), "got a list of 2; lists go into `layers`"),
        (lambda: mixture(signature=None), "`signature` must be a DSPy signature .* got None"),
        (lambda: mixture(signature=3), "`signature` must be a DSPy signature .* got 3"),
        (lambda: mixture(signature=mixture()), "`signature` must be .* got a MixtureOfAgents"),
        (lambda: mixture(adapter="json"), "`adapter` must be an adapter .* got 'json'"),
        (lambda: mixture(adapter=dspy.JSONAdapter), "`adapter` must be an adapter .* got a type"),
        (lambda: mixture(module=dspy.Predict(SIGNATURE)), "`module` must be .* got a Predict"),
        (lambda: mixture(module="cot"), "`module` must be a class .* got 'cot'"),
        (lambda: mixture(quorum="all"), "`quorum` must be a whole number, but got 'all'"),
        (lambda: mixture(quorum=1.5), "`quorum` must be a whole number, but got 1.5"),
        (lambda: mixture(deadline_seconds="9"), "`deadline_seconds` must be a number or None"),
        (lambda: mixture(reference_limits=100), "`reference_limits` must be ReferenceLimits"),
        (lambda: from_layers([dspy.LM("openai/mini")]), r"`layers\[0\]` must be a list .* a LM"),
        (lambda: from_layers(["ab"]), r"`layers\[0\]` must be a list .* got 'ab'"),
    ],
)
def test_a_mixture_is_not_built_of_it(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SearchSpace("abc"), "`space.agents` must be a list, .* got 'abc'"),  # type: ignore[arg-type]
        (lambda: SearchSpace(("a", "b"), combines="vote"), "`space.combines` must be a list"),  # type: ignore[arg-type]
        (lambda: SearchSpace(("a", "b"), max_depth=1.5), "`space.max_depth` must be a whole"),  # type: ignore[arg-type]
        (lambda: Budget(calls="9"), "`budget.calls` must be a number or None, but got '9'"),  # type: ignore[arg-type]
        (lambda: Budget(usd=True), "`budget.usd` must be a number or None, but got True"),
        (lambda: Limits(usd="x"), "`limits.usd` must be a number or None, but got 'x'"),  # type: ignore[arg-type]
    ],
)
def test_a_search_is_not_limited_by_it(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        make()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("temperature", "hot", "a number or None, but got a text of 3 characters"),
        ("max_tokens", "64", "a whole number, but got a text"),
        ("num_retries", None, "a whole number, but got None"),
        ("context_window", 0.5, "a whole number or None, but got 0.5"),
        ("timeout_seconds", "sk-0123456789", "a number, but got a text of 13 characters"),
        ("model", None, "a text, but got None"),
        ("name", 1, "a text, but got 1"),
        ("api_base", 8000, "a text or None, but got 8000"),
        ("headers", "Authorization", "a table, but got a text"),
    ],
)
def test_an_agent_has_no_such_setting(option: str, value: Any, words: str) -> None:
    given: dict[str, Any] = {"name": "a", "model": "openai/mini", option: value}
    with pytest.raises(PoolError, match=f"`{option}` must be {words}") as raised:
        Agent(**given)
    # It may be a key at the wrong place.
    assert "sk-" not in str(raised.value)


def test_lms_by_name_are_a_mixtures_pool() -> None:
    with serving(Reply("Paris")) as server:
        lms = {n: dspy.LM(f"openai/{n}", api_base=server.url, api_key="none") for n in "ab"}
        program = MixtureOfAgents(SIGNATURE, "a + b > vote", pool=lms, adapter=dspy.ChatAdapter())
        assert list(program.pool) == ["a", "b"]
        named = MixtureOfAgents(SIGNATURE, "a + b > vote", pool=[*lms.values()])
        assert list(named.pool) == ["a", "b"]


def test_a_root_predictor_goes_by_dspys_name_too() -> None:
    pool = scripted_pool({name: "Paris" for name in "ab"})
    for path in ("self", "predict"):
        made = MixtureOfAgents.in_place_of(dspy.ChainOfThought(SIGNATURE), path, pool=pool)
        assert isinstance(made, MixtureOfAgents)
