"""A server of mixtures on this machine, for tests: in a thread, on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import openai
import uvicorn

from moa_dspy.agent import Agent
from moa_dspy.calls.calls import Calls
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.serve.answering import Catalogue
from moa_dspy.serve.app import create_app
from moa_dspy.serve.limits import BoundedCalls, ServerKeys, ServerLimits
from moa_dspy.testing import Script, scripted_pool
from tests.servers.chat import ChatServer, Reply, serving

KEY = "test-key-of-alice"


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Run an application; the value is the address of its API."""
    config = uvicorn.Config(
        app, "127.0.0.1", 0, log_config=None, access_log=False, h11_max_incomplete_event_size=32_768
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)


def app_of(
    pool: Pool,
    *,
    programs: Mapping[str, MixtureOfAgents] | None = None,
    aggregator: str | None = None,
    keys: Mapping[str, str] | None = None,
    limits: ServerLimits | None = None,
    has_content_log: bool = False,
) -> Any:
    """Return the application of a pool; without ``keys`` the key is ``KEY``."""
    catalogue = Catalogue(programs or {}, pool, aggregator=aggregator, limits=limits)
    known = ServerKeys({"alice": KEY} if keys is None else keys)
    return create_app(catalogue, keys=known, limits=limits, has_content_log=has_content_log)


def server_pool(answers: Mapping[str, Script], **options: Any) -> Pool:
    """Return a scripted pool that keeps calls as a server does."""
    return scripted_pool(answers, calls=Calls(BoundedCalls()), **options)


@contextmanager
def one_agent(*replies: Reply) -> Iterator[tuple[ChatServer, openai.OpenAI]]:
    """Serve an agent ``a`` whose endpoint gives these replies, to OpenAI's own client."""
    with serving(list(replies)) as server:
        agent = Agent(name="a", model="openai/a", api_base=server.url, num_retries=0)
        with (
            running(app_of(Pool([agent], calls=Calls(BoundedCalls())))) as url,
            openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client,
        ):
            yield server, client
