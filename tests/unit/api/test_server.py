"""What the server is made of, where the extra `api` is installed."""

from __future__ import annotations

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def test_the_fast_event_loop_and_parser_are_used() -> None:
    """`uvicorn[standard]` brings both; uvicorn takes them by itself."""
    config = uvicorn.Config(lambda scope: None)  # type: ignore[arg-type]
    config.load()
    assert config.http_protocol_class is HttpToolsProtocol
    assert config.get_loop_factory() is uvloop.new_event_loop
