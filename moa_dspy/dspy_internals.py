"""Names of DSPy 3.4 that are no documented interface; all other modules import them from here.

A new version of DSPy is tried by changing this module and running the tests.
"""

from __future__ import annotations

# The typed requests, responses, events, errors and clients below `dspy.LM`: an engine is defined
# in terms of them, and the stored form of a call is theirs.
from dspy import lm15

# A reply as DSPy's own client hands it to be read.
from dspy._vendor.lm15.providers.base import HttpResponse

# Puts the events of a stream together to the response that is stored.
from dspy._vendor.lm15.result import StreamAccumulator

# Requests and responses as plain JSON data: the content of a stored call and of its key.
from dspy._vendor.lm15.serde import request_to_dict, response_from_dict, response_to_dict

# Connections that are kept open; ours bound the time of a whole exchange.
from dspy._vendor.lm15.transports import (
    ReadTimeout,
    StdlibAsyncTransport,
    StdlibTransport,
    WriteTimeout,
)

# The choice between DSPy's own client and LiteLLM: an adopted LM must be asked as it asks itself.
from dspy.clients.backend_selection import CLIENT_KEYS, BackendSelection, select_backend

# The engines that send one request each; ours wrap them, so that attempts are counted.
from dspy.clients.engines import AsyncLiteLLMEngine, AsyncLM15Engine, LiteLLMEngine, LM15Engine

# The check of a request that DSPy's engines make before they send it.
from dspy.clients.engines.base import validate_request

# Streams that close their connection when they are left early.
from dspy.clients.engines.lifecycle import aclosing_stream, closing_stream

# The events of LiteLLM's chunks; ours takes out what it knows no event of.
from dspy.clients.engines.litellm_engine import _ChatStream as LiteLLMChunks

# LiteLLM's errors as DSPy's, by which retries are decided.
from dspy.clients.engines.litellm_errors import litellm_errors, to_lm15_error

# The timeouts of an LM as its client takes them.
from dspy.clients.engines.lm15_engine import timeouts_for

# The check of the order of events in a stream.
from dspy.clients.engines.stream_guard import achecked_stream, checked_stream

# The error as users of `dspy.LM` see it, by which retries are decided.
from dspy.clients.errors import wrap_error

# A reply of LiteLLM's as plain data.
from dspy.clients.legacy_outputs import plain

# The base of providers that launch a model: an LM of such a one cannot be adopted.
from dspy.clients.provider import Provider

# The settings of the process: a trace that is another one was begun by a caller, to read it.
from dspy.dsp.utils.settings import main_thread_config

__all__ = [
    "CLIENT_KEYS",
    "AsyncLM15Engine",
    "AsyncLiteLLMEngine",
    "BackendSelection",
    "HttpResponse",
    "LM15Engine",
    "LiteLLMChunks",
    "LiteLLMEngine",
    "Provider",
    "ReadTimeout",
    "StdlibAsyncTransport",
    "StdlibTransport",
    "StreamAccumulator",
    "WriteTimeout",
    "achecked_stream",
    "aclosing_stream",
    "checked_stream",
    "closing_stream",
    "litellm_errors",
    "lm15",
    "main_thread_config",
    "plain",
    "request_to_dict",
    "response_from_dict",
    "response_to_dict",
    "select_backend",
    "timeouts_for",
    "to_lm15_error",
    "validate_request",
    "wrap_error",
]
