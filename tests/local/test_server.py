"""A real small model answers in this process; skipped, with the reason, where there is none."""

from __future__ import annotations

import asyncio
import copy
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.errors import LocalModelError
from moa_dspy.local import (
    AsyncLocalEngine,
    LocalEngine,
    LocalServer,
    pull,
    shared_server,
    usable_cores,
)


@pytest.fixture(scope="module")
def weights() -> Path:
    pytest.importorskip("xllamacpp", reason="live: xllamacpp is not installed")
    try:
        return pull("smollm2-135m-instruct")
    except LocalModelError as error:
        pytest.skip(f"live: {error}")


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[LocalServer]:
    server = LocalServer(weights, n_slots=4, n_context=512)
    yield server
    server.close()


def body(question: str, **settings: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": question},
    ]
    return {"messages": messages, "max_tokens": 12, "temperature": 0} | settings


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def request(*messages: lm15.Message, **config: Any) -> lm15.Request:
    return lm15.Request(model="smollm2", messages=messages, config=lm15.Config(**config))


@pytest.mark.slow
@pytest.mark.live
def test_four_threads_get_four_answers(server: LocalServer) -> None:
    questions = [f"What is the capital of {c}?" for c in ("France", "Italy", "Spain", "Peru")]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda q: server.chat(body(q)), questions))
    assert all(text(answer) for answer in answers)
    assert "Paris" in text(answers[0])
    assert all(0 < a["usage"]["completion_tokens"] <= 12 for a in answers)


@pytest.mark.slow
@pytest.mark.live
def test_temperature_0_repeats_itself(server: LocalServer) -> None:
    first, second = (text(server.chat(body("Name a colour."))) for _ in range(2))
    assert first == second


@pytest.mark.slow
@pytest.mark.live
def test_a_seed_repeats_itself_and_seeds_differ(server: LocalServer) -> None:
    def reply_of(seed: int) -> str:
        settings = {"temperature": 0.7, "seed": seed, "max_tokens": 16}
        return text(server.chat(body("Tell a story about a dog.", **settings)))

    assert reply_of(1) == reply_of(1)
    assert len({reply_of(seed) for seed in range(1, 5)}) > 1


@pytest.mark.slow
@pytest.mark.live
def test_a_shared_beginning_is_read_once(server: LocalServer) -> None:
    server.chat(body("Name a colour."))
    again = server.chat(body("Name a colour."))
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


# As programs of today ask an LM; what replaces it is asked by every other test.
@pytest.mark.filterwarnings("ignore:Passing OpenAI-style message:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.live
def test_dspy_asks_through_the_engines(server: LocalServer) -> None:
    engine, async_engine = LocalEngine(server), AsyncLocalEngine(server)
    assert copy.deepcopy(engine) is engine
    lm = dspy.LM(
        "local/smollm2",
        engine=engine,
        async_engine=async_engine,
        cache=False,
        temperature=0.0,
        max_tokens=12,
    )
    messages = body("What is the capital of France?")["messages"]
    (answer,) = lm(messages=messages)
    assert "Paris" in answer

    async def ask() -> list[Any]:
        questions = [lm.acall(messages=messages) for _ in range(3)]
        answers = await asyncio.gather(*questions)
        await async_engine.aclose()
        return answers

    assert all("Paris" in text for (text,) in asyncio.run(ask()))


@pytest.mark.live
def test_a_response_says_why_it_ended_and_what_it_took(server: LocalServer) -> None:
    question = lm15.Message.user("Count to one hundred.")
    asked = request(question, max_tokens=3, temperature=0.0, seed=1, top_k=5, stop=("%",))
    response = LocalEngine(server).complete(asked)
    assert response.finish_reason == "length"
    assert response.usage.output_tokens == 3
    assert response.usage.total_tokens == response.usage.input_tokens + 3
    events = list(LocalEngine(server).stream(asked))
    assert [events[0].type, events[-1].type] == ["start", "end"]


@pytest.mark.slow
@pytest.mark.live
def test_log_probabilities_come_with_their_alternatives(server: LocalServer) -> None:
    question = lm15.Message.user("Is 2 or 1 the larger number? Reply with one number.")
    settings: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0, "seed": 1}
    engine = LocalEngine(server)
    response = engine.complete(request(question, logprobs=5, **settings))
    tokens = response.logprobs or ()
    assert "".join(token.token for token in tokens) == response.message.text
    for token in tokens:
        # Greedy: the chosen token is the likeliest, and the list runs down from it.
        assert len(token.top) == 5
        assert (token.top[0].token, token.top[0].logprob) == (token.token, token.logprob)
        assert sorted((top.logprob for top in token.top), reverse=True) == [
            top.logprob for top in token.top
        ]
        assert sum(math.exp(top.logprob) for top in token.top) < 1.0001
    chosen_only = engine.complete(request(question, logprobs=0, **settings)).logprobs or ()
    assert [(token.token, token.top) for token in chosen_only] == [(t.token, ()) for t in tokens]
    assert engine.complete(request(question, **settings)).logprobs is None


@pytest.mark.slow
@pytest.mark.live
def test_a_json_schema_is_kept(server: LocalServer) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}
    shape = {"type": "json_schema", "schema": schema}
    asked = request(lm15.Message.user("A number"), max_tokens=20, response_format=shape, seed=1)
    assert "7" in LocalEngine(server).complete(asked).message.text


@pytest.mark.live
def test_failures_become_the_errors_dspy_knows(server: LocalServer) -> None:
    engine = LocalEngine(server)
    with pytest.raises(lm15.ContextLengthError, match="exceeds the available context"):
        engine.complete(request(lm15.Message.user("word " * 600)))
    wrong = request(lm15.Message.user("Hi"), extensions={"temperature": "hot"})
    with pytest.raises(lm15.InvalidRequestError, match="type must be number"):
        engine.complete(wrong)
    with pytest.raises(LocalModelError, match="array"):
        server.chat({"messages": "no list"})


@pytest.mark.slow
@pytest.mark.live
def test_a_closed_server_loads_again_and_stderr_is_python_s_own(
    weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = LocalServer(weights, n_slots=1, n_context=256, n_threads=1)
    assert server.url.startswith("http://127.0.0.1:")
    server.close()
    assert text(server.chat(body("Hi")))
    server.close()
    print("heard", file=sys.stderr)
    assert capfd.readouterr().err == "heard\n"


@pytest.mark.live
def test_a_file_cut_short_is_an_error_and_no_crash(weights: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with weights.open("rb") as file:
        cut.write_bytes(file.read(1_000_000))
    with pytest.raises(LocalModelError, match=r"cannot load .*cut.gguf \(1 MB\) with 2 slots"):
        LocalServer(cut, n_slots=2).chat(body("Hi"))


def test_what_is_no_gguf_is_refused_before_loading(tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<html>")
    with pytest.raises(LocalModelError, match="is not a GGUF file"):
        LocalServer(page).chat(body("Hi"))
    with pytest.raises(lm15.ConfigurationError, match="cannot be read: No such file"):
        LocalEngine(LocalServer(tmp_path / "absent")).complete(request(lm15.Message.user("Hi")))


def test_one_server_per_weights_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert shared_server(path) is shared_server(tmp_path / "." / "a.gguf")
    assert shared_server(path) is not shared_server(path, n_slots=2)


def test_settings_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError, match="`n_slots` must be at least 1, but got 0"):
        LocalServer(tmp_path, n_slots=0)
    with pytest.raises(LocalModelError, match="`n_threads` must be at least 1, but got 0"):
        LocalServer(tmp_path, n_threads=0)


def test_at_least_one_core_is_free() -> None:
    assert usable_cores() >= 1


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_brings_tokens_as_they_are_made(server: LocalServer, is_async: bool) -> None:
    asked = request(lm15.Message.user("Count from 1 to 9."), max_tokens=20, temperature=0.0)

    async def collect() -> list[Any]:
        engine = AsyncLocalEngine(server)
        found = [event async for event in engine.stream(asked)]
        await engine.aclose()
        return found

    found = asyncio.run(collect()) if is_async else list(LocalEngine(server).stream(asked))
    whole = LocalEngine(server).complete(asked)
    pieces = [event.delta.text for event in found if event.type == "delta"]
    assert len(pieces) > 5
    assert "".join(pieces) == whole.message.parts[0].text
    assert (found[-1].finish_reason, found[-1].usage) == (whole.finish_reason, whole.usage)


def test_a_stream_that_is_left_stops_the_model(server: LocalServer) -> None:
    engine = LocalEngine(server)
    events = engine.stream(request(lm15.Message.user("Count to 900."), max_tokens=400))
    assert [next(events).type for _ in range(2)] == ["start", "delta"]
    events.close()
    assert text(server.chat(body("Say yes.")))
