"""Undocumented names of DSPy 3.4; all other modules import them from here.

To try a new version of DSPy, change this module and run the tests.
"""

from __future__ import annotations

# The typed requests, responses, events, errors and clients below `dspy.LM`: engines and the stored
# form of calls are defined by them.
from dspy import lm15

# A reply in the form that DSPy's own client parses.
from dspy._vendor.lm15.providers.base import HttpResponse

# Joins the events of a stream into the response that is stored.
from dspy._vendor.lm15.result import StreamAccumulator

# Requests and responses as plain JSON data: the content of a stored call and of its key.
from dspy._vendor.lm15.serde import request_to_dict, response_from_dict, response_to_dict

# Connections that are kept open; our subclass limits the time of a whole exchange.
from dspy._vendor.lm15.transports import (
    ReadTimeout,
    StdlibAsyncTransport,
    StdlibTransport,
    WriteTimeout,
)

# The choice between DSPy's own client and LiteLLM: an adopted LM must use the client that it would
# choose itself.
from dspy.clients.backend_selection import CLIENT_KEYS, BackendSelection, select_backend

# The engines that make one attempt per request; our engines wrap them to count attempts.
from dspy.clients.engines import AsyncLiteLLMEngine, AsyncLM15Engine, LiteLLMEngine, LM15Engine

# The check that DSPy's engines apply to a request before they send it.
from dspy.clients.engines.base import validate_request

# Streams that close their connection when the reader stops early.
from dspy.clients.engines.lifecycle import aclosing_stream, closing_stream

# The events of LiteLLM's chunks; our subclass drops fields without an event.
from dspy.clients.engines.litellm_engine import _ChatStream as LiteLLMChunks

# The conversion of LiteLLM's errors to DSPy's, which decide about retries.
from dspy.clients.engines.litellm_errors import litellm_errors, to_lm15_error

# The timeouts of an LM in the form of its client.
from dspy.clients.engines.lm15_engine import timeouts_for

# The check of the order of events in a stream.
from dspy.clients.engines.stream_guard import achecked_stream, checked_stream

# The chunks that `dspy.streamify` hands to its listeners.
from dspy.clients.engines.streaming import EngineChunk

# The errors that users of `dspy.LM` see, which decide about retries.
from dspy.clients.errors import wrap_error

# LiteLLM's reply as plain data.
from dspy.clients.legacy_outputs import plain

# The base of providers that launch a model: an LM of such a provider cannot be adopted.
from dspy.clients.provider import Provider

# The settings of the process: any other trace was started by a caller that will read it.
from dspy.dsp.utils.settings import main_thread_config

__all__ = [
    "CLIENT_KEYS",
    "AsyncLM15Engine",
    "AsyncLiteLLMEngine",
    "BackendSelection",
    "EngineChunk",
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
