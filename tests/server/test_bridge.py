"""From ASGI to WSGI and back."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from byteor.server.bridge import PIECE, call


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_a_response_in_several_pieces_is_whole(kind: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    pieces = [b"a" * PIECE, b"b" * 100]

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        return kind(pieces)

    answer = call(application, {}, io.BytesIO())
    rest = b""
    while answer.rest is not None and (piece := answer.rest.next()):
        rest += piece
    assert answer.first + rest == b"".join(pieces)
