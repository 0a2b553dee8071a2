"""Real clients, unmodified, against the server: openai, litellm, DSPy, llm, and openai for node."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dspy
import openai
import pytest

from tests.serve.running import KEY, app_of, running, server_pool

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # no download at import

pytestmark = pytest.mark.slow

MODEL = "a + b > synthesize(c)"
ASKED: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Where?"}]
ANSWER = "Paris it is"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pool = server_pool({"a": "draft", "b": "other", "c": ANSWER})
    with running(app_of(pool, aggregator="c")) as made:
        yield made


def test_openai_python(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key=KEY) as client:
        whole = client.chat.completions.create(model=MODEL, messages=ASKED)
        assert whole.choices[0].message.content == ANSWER
        stream = client.chat.completions.create(model=MODEL, messages=ASKED, stream=True)
        texts = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(texts) == ANSWER
        assert client.responses.create(model=MODEL, input="Where?").output_text == ANSWER
        with client.responses.stream(model=MODEL, input="Where?") as events:
            assert events.get_final_response().output_text == ANSWER
        assert client.completions.create(model=MODEL, prompt="Where?").choices[0].text == ANSWER
        names = [model.id for model in client.models.list()]
        assert names == ["a", "b", "c", "moa", "moa-lite", "self-moa"]
        with pytest.raises(openai.NotFoundError, match="Unknown model 'absent'"):
            client.chat.completions.create(model="absent", messages=ASKED)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another-key").models.list()


def test_openai_python_in_coroutines(url: str) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
            whole = await client.chat.completions.create(model=MODEL, messages=ASKED)
            stream = await client.chat.completions.create(model=MODEL, messages=ASKED, stream=True)
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content, "".join(texts)

    assert asyncio.run(ask()) == (ANSWER, ANSWER)


def test_litellm(url: str) -> None:
    import litellm

    where = {"api_base": url, "api_key": KEY}
    whole = litellm.completion(f"openai/{MODEL}", ASKED, **where)
    assert whole.choices[0].message.content == ANSWER
    stream = litellm.completion(f"openai/{MODEL}", ASKED, stream=True, **where)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER


def test_dspy(url: str) -> None:
    lm = dspy.LM(f"openai/{MODEL}", api_base=url, api_key=KEY, cache=False)
    assert lm("Where?") == [ANSWER]
    newer = dspy.LM(
        "openai/moa-lite", api_base=url, api_key=KEY, cache=False, model_type="responses"
    )
    assert newer("Where?")[0]["text"] == ANSWER


def test_llm(url: str, tmp_path: Path) -> None:
    known = f'- model_id: moa\n  model_name: "{MODEL}"\n  api_base: "{url}"\n  api_key_name: moa\n'
    (tmp_path / "extra-openai-models.yaml").write_text(known)
    (tmp_path / "keys.json").write_text(json.dumps({"moa": KEY}))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    for more in ([], ["--no-stream"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "moa", *more, "Where?"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == ANSWER


def test_openai_for_node(url: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("client.mjs")
    (tmp_path / "client.mjs").write_text(script.read_text())
    try:
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "openai@6"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"NOT TESTED: npm cannot be run: {error}")
    if done.returncode:
        pytest.skip(f"NOT TESTED: npm cannot install `openai`: {done.stderr[-300:]}")
    ran = subprocess.run(
        ["node", "client.mjs", url, KEY], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "whole": ANSWER,
        "streamed": ANSWER,
        "response": ANSWER,
        "models": ["a", "b", "c", "moa", "moa-lite", "self-moa"],
        "refused": 404,
    }
