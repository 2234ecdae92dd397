"""Django request and handler that tolerate any character set in headers."""

from __future__ import annotations

from typing import Any

from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.utils.http import parse_header_parameters


def _in_utf8(header: str) -> str:
    """A `Content-Type` without a `charset` other than UTF-8; empty when its parameters can't be read."""
    try:
        kind, parameters = parse_header_parameters(header)
    except (LookupError, ValueError):
        return ""
    if parameters.get("charset", "utf-8").lower() in ("utf-8", "utf8"):
        return header
    kept = ((name, value) for name, value in parameters.items() if name != "charset")
    return kind + "".join(f'; {name}="{_escaped(value)}"' for name, value in kept)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _readable(media_range: str) -> bool:
    try:
        parse_header_parameters(media_range)
    except (LookupError, ValueError):
        return False
    return True


class Request(WSGIRequest):
    """A request whose text is always UTF-8 (RFC 8259, the URL standard).

    Django decodes query strings and forms by the `charset` of `Content-Type`, which may name a codec that is not for text
    (`hex`) or yields lone surrogates (`utf-7`), and it fails on malformed parameters. Such a `charset` or header is ignored,
    and so is such a part of `Accept`.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        if ";" in environ.get("CONTENT_TYPE", ""):
            environ["CONTENT_TYPE"] = _in_utf8(environ["CONTENT_TYPE"])
        if ";" in environ.get("HTTP_ACCEPT", ""):
            environ["HTTP_ACCEPT"] = ",".join(filter(_readable, environ["HTTP_ACCEPT"].split(",")))
        super().__init__(environ)


class Handler(WSGIHandler):
    """Django's WSGI handler with this request class."""

    request_class = Request
