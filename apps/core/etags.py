"""Conditional requests (RFC 9110 §13) with strong entity tags."""

from __future__ import annotations

from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.errors import BadRequest, PreconditionFailed, PreconditionRequired


def _tags(header: str) -> list[str]:
    tags = [part.strip() for part in header.split(",") if part.strip()]
    for tag in tags:
        bare = tag.removeprefix("W/")
        if tag != "*" and not (len(bare) >= 2 and bare[0] == bare[-1] == '"'):
            raise BadRequest("An entity tag is quoted.", code="bad_etag")
    return tags


def check_if_match(request: Request, edit: int | str, *, required: bool = False) -> None:
    """Refuse a write that was prepared against another version.

    `edit` is the part of the tag that people's edits move: `"<edit>"` or `"<edit>.<anything>"` match it.
    Raises PreconditionFailed (412); without the header PreconditionRequired (428) if `required`.
    """
    header = request.headers.get("If-Match")
    if header is None:
        if required:
            raise PreconditionRequired("Send If-Match with the ETag that you read.")
        return
    for tag in _tags(header):
        if tag == "*" or (not tag.startswith("W/") and tag[1:-1].split(".", 1)[0] == str(edit)):
            return
    raise PreconditionFailed("It has changed since you read it.")


def tagged(request: Request, body: object, tag: str, *, status: int = 200) -> Response:
    """`body` with the strong ETag `"tag"`; a GET whose If-None-Match names it is answered 304 without a body."""
    quoted = f'"{tag}"'
    header = request.headers.get("If-None-Match")
    reading = request.method in ("GET", "HEAD") and header is not None
    if reading and any(known == "*" or known.removeprefix("W/") == quoted for known in _tags(header or "")):
        return Response(status=304, headers={"ETag": quoted})
    return Response(body, status=status, headers={"ETag": quoted})
