"""What the engines refuse and share, before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dspy import lm15

from moa_dspy.errors import ChecksumError
from moa_dspy.local import AsyncLocalEngine, LocalEngine, LocalServer, local_engine
from moa_dspy.local.server import loading_seconds


def request(*messages: lm15.Message, **config: Any) -> lm15.Request:
    return lm15.Request(model="smollm2", messages=messages, config=lm15.Config(**config))


def test_more_than_text_is_refused_without_a_model(tmp_path: Path) -> None:
    engine = LocalEngine(LocalServer(tmp_path / "absent"))
    image = lm15.Message.user([lm15.ImagePart(url="https://example.org/a.png")])
    with pytest.raises(lm15.UnsupportedFeatureError, match="has a image part"):
        engine.complete(request(image))
    with pytest.raises(lm15.UnsupportedFeatureError, match="`service_tier`"):
        engine.complete(request(lm15.Message.user("Hi"), service_tier="flex"))
    tools = (lm15.FunctionTool(name="f"),)
    with pytest.raises(lm15.UnsupportedFeatureError, match="cannot use tools"):
        engine.complete(lm15.Request(model="m", messages=(lm15.Message.user("Hi"),), tools=tools))


def test_an_engine_is_built_from_a_file_with_the_right_sum(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF")
    engine = local_engine(path, n_slots=2)
    assert isinstance(engine, LocalEngine)
    other = local_engine(path, n_slots=2, asynchronous=True)
    assert isinstance(other, AsyncLocalEngine)
    assert engine.server is other.server
    with pytest.raises(ChecksumError, match="but 00 was expected"):
        local_engine(path, sha256="00")


def test_finding_and_checking_of_weights_is_counted_as_loading(tmp_path: Path) -> None:
    path, before = tmp_path / "a.gguf", loading_seconds()
    path.write_bytes(b"GGUF")
    with pytest.raises(ChecksumError):
        local_engine(path, sha256="00")
    assert loading_seconds() > before
