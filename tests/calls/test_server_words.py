"""What a server says is wrong is shown in its own words, with the address that was asked."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
from base64 import b64encode, urlsafe_b64encode
from typing import Any
from urllib.parse import quote

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.errors import LayerFailedError, masked
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.streaming import AnswerListener
from moa_dspy.vendors import decoded, server_words
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

PLACE = [{"type": "too_small", "loc": ["body", "max_tokens"], "msg": "must be at least 1"}]
PAGE = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
# Server, its status, what it sends, and what is to be read in it.
BODIES: dict[str, tuple[int, Any, str]] = {
    "OpenAI": (400, {"error": {"message": "no such model", "code": "x"}}, "no such model"),
    "vLLM": (
        400,
        {"object": "error", "message": "context is 4096", "code": 400},
        "context is 4096",
    ),
    "FastAPI, fields": (422, {"detail": PLACE}, "body.max_tokens: must be at least 1"),
    "FastAPI, text": (400, {"detail": "not loaded"}, "not loaded"),
    "Ollama": (404, {"error": "model 'x' not found"}, "model 'x' not found"),
    "LM Studio": (400, {"error": {"message": "Model unloaded"}}, "Model unloaded"),
    "llama.cpp": (503, {"error": {"code": 503, "message": "Loading model"}}, "Loading model"),
    "TGI": (422, {"error": "inputs too long", "error_type": "validation"}, "inputs too long"),
    "Anthropic": (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "Overloaded",
    ),
    "Gemini": (400, [{"error": {"code": 400, "message": "key not valid"}}], "key not valid"),
    "Mistral": (422, {"message": {"detail": [{"loc": ["body"], "msg": "too big"}]}}, "too big"),
    "Bedrock": (400, {"Message": "User not authorized"}, "User not authorized"),
    "OAuth": (400, {"error": "invalid", "error_description": "token expired"}, "token expired"),
    "a list of errors": (400, {"errors": [{"message": "quota gone"}]}, "quota gone"),
    "a proxy's page": (502, PAGE, "502 Bad Gateway nginx"),
    "text": (500, "Internal Server Error", "Internal Server Error"),
    "nothing": (500, "", "The server gives no reason"),
    "OpenRouter": (
        429,
        {
            "error": {
                "message": "Provider returned error",
                "metadata": {"raw": '{"detail": "too many at once"}', "provider_name": "Acme"},
            }
        },
        "Provider returned error: Acme: too many at once",
    ),
    "fields with errors": (400, {"errors": {"temperature": ["too hot"]}}, "too hot"),
    "a shape of its own": (400, {"status": "fail", "why": {"is": "closed"}}, "closed"),
    "a short name": (400, {"err": "no quota"}, "no quota"),
    "Lambda": (400, {"errorMessage": "out of time"}, "out of time"),
    "a byte order mark": (400, "\ufeff" + json.dumps({"error": "wrong tea"}), "wrong tea"),
    "status 200, no answer": (200, {"status_code": 1004, "state": "shut"}, '"state": "shut"'),
    "status 200, text": (200, {"error": "not loaded"}, "not loaded"),
    "status 200, object": (200, {"error": {"message": "not loaded"}}, "not loaded"),
    "status 200, no choices": (200, {"detail": "not loaded"}, "not loaded"),
}
BOTH_CLIENTS = pytest.mark.parametrize("client", ["auto", "litellm"])
BOTH_WAYS = pytest.mark.parametrize("is_streamed", [False, True])


def mixture_of(server: ChatServer | str, client: str, **more: Any) -> MixtureOfAgents:
    url = server if isinstance(server, str) else server.url
    agent = Agent(name="a", model="openai/x", api_base=url, client=client, num_retries=0, **more)
    return MixtureOfAgents("question -> answer", "a", pool=Pool([agent]), adapter=PlainChat())


def refusal_of(program: MixtureOfAgents, *, is_streamed: bool) -> str:
    """Ask, whole or as a stream, and return why there was no answer."""

    async def streamed() -> None:
        listener = AnswerListener(program)
        async for _ in dspy.streamify(program, stream_listeners=[listener])(question="?"):
            pass

    try:
        asyncio.run(streamed()) if is_streamed else program(question="?")
    except LayerFailedError as error:
        return str(error)
    except BaseExceptionGroup as group:
        return "".join(map(str, group.exceptions))
    raise AssertionError("there was an answer")


@BOTH_WAYS
@BOTH_CLIENTS
@pytest.mark.parametrize("server_kind", BODIES)
def test_the_error_has_the_server_s_words_and_the_address_in_one_line(
    server_kind: str, client: str, is_streamed: bool
) -> None:
    status, body, words = BODIES[server_kind]
    payload = body if isinstance(body, str) else json.dumps(body)
    with serving(Reply(status=status, body=payload.encode())) as server:
        said = refusal_of(mixture_of(server, client), is_streamed=is_streamed)
        assert words in said
        assert f"{server.url}/chat/completions" in said
    assert "\n" not in said


@BOTH_WAYS
@BOTH_CLIENTS
def test_a_redirect_says_where_to(client: str, is_streamed: bool) -> None:
    with serving(Reply(status=307, location="/v2/chat/completions")) as server:
        said = refusal_of(mixture_of(server, client), is_streamed=is_streamed)
        assert "redirects to /v2/chat/completions (HTTP 307 from" in said
        assert "set `api_base` to the address to which the server redirects" in said
        assert len(server.paths) == 1, "nothing was sent elsewhere"


@BOTH_CLIENTS
@pytest.mark.parametrize(
    ("end", "hint"),
    [("", r"lack /v1\?"), ("/v1/chat/completions", "must end before /chat/completions")],
)
def test_an_address_that_is_not_found_comes_with_a_hint(client: str, end: str, hint: str) -> None:
    with (
        serving(Reply(status=404, body=b"404 page not found")) as server,
        pytest.raises(LayerFailedError, match=f"404 page not found.*{hint}"),
    ):
        mixture_of(f"{server.root}{end}", client)(question="?")


@BOTH_CLIENTS
def test_a_rejected_key_is_said_in_one_line_and_not_shown(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "-".join(["sk", "planted", "0123456789"])
    monkeypatch.setenv("MOA_TEST_WORDS_KEY", key)
    body = json.dumps({"error": {"message": f"Incorrect API key: {key}"}}).encode()
    with serving(Reply(status=401, body=body)) as server:
        program = mixture_of(server, client, api_key_env="MOA_TEST_WORDS_KEY")
        said = refusal_of(program, is_streamed=False)
        assert server.headers[0]["Authorization"] == f"Bearer {key}"
    assert "Incorrect API key: ***" in said
    assert "To fix" not in said


KEY = "-".join(["sk", "Planted", "+/=", "0123456789", "abcdef"])
SPELLED = {
    "in an address": quote(KEY, safe=""),
    "in an address, twice": quote(quote(KEY, safe=""), safe=""),
    "in an address, in lower case": quote(KEY, safe="").lower(),
    "in JSON": "".join(f"\\u{ord(character):04x}" for character in KEY),
    "in JSON, slashes": KEY.replace("/", r"\/"),
    "in HTML": KEY.replace("+", "&#43;").replace("/", "&#x2F;"),
    "in hexadecimal": KEY.encode().hex(),
    "in capitals": KEY.upper(),
    "its beginning": KEY[:16],
    "in base64": b64encode(KEY.encode()).decode(),
    "in base64 for addresses": urlsafe_b64encode(KEY.encode()).decode(),
    "with a user": b64encode(f"user:{KEY}".encode()).decode(),
    "with no user": b64encode(f":{KEY}".encode()).decode(),
    "before a colon": b64encode(f"{KEY}:".encode()).decode(),
}


@pytest.mark.parametrize("way", SPELLED)
@pytest.mark.parametrize("is_json", [False, True])
def test_a_key_is_not_shown_however_a_server_writes_it(
    way: str, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOA_TEST_WORDS_KEY", KEY)
    text = f"The key {SPELLED[way]} is wrong"
    body = json.dumps({"error": {"message": text}}) if is_json else text
    with serving(Reply(status=401, body=body.encode())) as server:
        program = mixture_of(server, "auto", api_key_env="MOA_TEST_WORDS_KEY")
        said = refusal_of(program, is_streamed=False)
    assert "The key *** is wrong (HTTP 401" in said


def test_a_key_that_the_end_of_the_words_cuts_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOA_TEST_WORDS_KEY", KEY)
    body = f"{'x' * 480} {KEY}"  # 500 characters are shown
    with serving(Reply(status=401, body=body.encode())) as server:
        program = mixture_of(server, "auto", api_key_env="MOA_TEST_WORDS_KEY")
        assert "x *** (HTTP 401" in refusal_of(program, is_streamed=False)


def test_other_words_are_left() -> None:
    text = "sk-Planted keys begin so; 0123456789abcdef do not"
    assert masked(text, [KEY, "another-secret-of-mine"]) == text


@pytest.mark.parametrize("is_async", [False, True])
@BOTH_CLIENTS
def test_a_refused_connection_says_which_address_was_asked(client: str, is_async: bool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        program = mixture_of(url, client)
        with pytest.raises(
            LayerFailedError, match=rf"Errno {errno.ECONNREFUSED}\].* \(asked: {url}\)"
        ):
            asyncio.run(program.acall(question="?")) if is_async else program(question="?")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", ""),
        ("null", ""),
        ("[]", ""),
        ("{}", ""),
        ('"x"', "x"),
        ("7", "7"),
        ('"\\u00e9"', "\u00e9"),
        ('{"error": {"metadata": {"raw": "busy"}}}', "busy"),
        ("[" * 50_000, "[" * 500),
        ('{"error": {}}', ""),
        ('{"error": {"code": 7}}', ""),
        ('{"error": null, "detail": {"reason": "full"}}', "full"),
        ("two\n  lines", "two lines"),
        ("<style>p {}</style><p>closed <b>today</b></p>", "closed today"),
    ],
)
def test_words_are_found_in_any_shape(body: str, words: str) -> None:
    assert server_words(body)["message"] == words


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_body_is_read_in_the_encoding_that_it_has(encoding: str) -> None:
    assert decoded("Schl\u00fcssel".encode(encoding)) == "Schl\u00fcssel"


def test_words_are_cut_after_500_characters() -> None:
    assert len(server_words("x" * 10_000)["message"]) == 500
