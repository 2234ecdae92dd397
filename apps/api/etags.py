"""Conditional requests (RFC 9110 §13) with strong entity tags."""

from __future__ import annotations

import hashlib
import json

from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.errors import BadRequest, PreconditionFailed, PreconditionRequired


def _tags(header: str) -> list[str]:
    tags = [part.strip() for part in header.split(",") if part.strip()]
    for tag in tags:
        bare = tag.removeprefix("W/")
        if tag != "*" and not (len(bare) >= 2 and bare[0] == bare[-1] == '"'):
            raise BadRequest("An entity tag must be quoted.", code="bad_etag")
    return tags


def check_if_match(request: Request, edit: int | str, *, required: bool = False) -> None:
    """Check If-Match against the present edit of a resource.

    `edit` is the part of the tag that changes with each edit by a user: `"<edit>"` and `"<edit>.<anything>"` match.
    Raises PreconditionFailed (412) on a mismatch, and PreconditionRequired (428) without the header if `required`.
    """
    header = request.headers.get("If-Match")
    if header is None:
        if required:
            raise PreconditionRequired("Send If-Match with the ETag that you read.")
        return
    for tag in _tags(header):
        if tag == "*" or (not tag.startswith("W/") and tag[1:-1].split(".", 1)[0] == str(edit)):
            return
    raise PreconditionFailed("The resource has changed since you read it.")


def etag_response(request: Request, body: object, tag: str, *, status: int = 200) -> Response:
    """Respond with `body` and the strong ETag `"tag"`, or with 304 to a GET whose If-None-Match names it."""
    quoted = f'"{tag}"'
    header = request.headers.get("If-None-Match")
    reading = request.method in ("GET", "HEAD") and header is not None
    if reading and any(known == "*" or known.removeprefix("W/") == quoted for known in _tags(header or "")):
        return Response(status=304, headers={"ETag": quoted})
    return Response(body, status=status, headers={"ETag": quoted})


def digest_tag(body: object) -> str:
    """An ETag value that changes with every member of a JSON document."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]
