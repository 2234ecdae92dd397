"""The heartbeat's door: the short way when it says nothing new, else the full view."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from apps.agents.lane import flush, memory
from apps.agents.lane.memory import Claims, Standing
from apps.agents.models import LATE_AFTER_MISSED
from apps.agents.services.directives import answer_body, sign_for
from apps.agents.services.liveness import UNHEALTHY_WORDS
from apps.core import clock, context
from apps.core.errors import BadRequest
from apps.core.parsers import parse_json
from apps.core.problems import problem_response

USE_NOTED_EVERY = dt.timedelta(minutes=1)
LONGEST_BODY = 3000
"""So short that its metrics are within their bound however they are written. A longer body takes the full view."""

_LINE = re.compile(r"\A[!-~](?:[ -~]{0,62}[!-~])?\Z")
_FIELDS = frozenset({"status", "version", "running", "key_set_version", "health", "metrics"})
_RUNNING_FIELDS = frozenset({"deployment_id", "bundle_sha256", "sequence"})
_JSON = frozenset({"application/json", "application/json; charset=utf-8"})
_ANY = frozenset({"", "*/*", "application/json", "application/json, */*"})

View = Callable[..., HttpResponseBase]


def heartbeat_door(full: View) -> View:
    """The view of the heartbeat's path: answers by `steady` when it can, else by `full`."""

    @csrf_exempt
    def view(request: HttpRequest, agent_id: uuid.UUID) -> HttpResponseBase:
        if request.method == "POST" and memory.is_open():
            answer = steady(request, agent_id)
            if answer is not None:
                return answer
        return full(request, agent_id=agent_id)

    return view


def steady(request: HttpRequest, agent_id: uuid.UUID) -> HttpResponse | None:
    """The answer to a heartbeat that says nothing new, by an agent whose standing holds; None for any other.

    No query. An agent that says which directive it has seen (`Directive-Seq`) is never answered with an older one; to others
    that can happen in the moment before this process hears of the newer, and they refuse it by its number.
    """
    meta = request.META
    standing = _standing_of(meta, agent_id)
    if standing is None:
        return None
    try:
        body = request.body
    except OSError:
        return problem_response(BadRequest("The body ended early.", code="malformed_body"), request.path)
    claims = _claims(body, standing)
    if claims is None or not _up_to_date(meta.get("HTTP_DIRECTIVE_SEQ"), standing):
        return None
    moment, now = time.monotonic(), clock.now()
    prefix = request.path.split("/agents/", 1)[0]
    if moment - standing.signed_at > memory.SIGNED_SECONDS:
        standing.bodies = {}
        standing.signed_at = moment
    answer = standing.bodies.get(prefix)
    if answer is None:
        answer = standing.bodies[prefix] = _signed_body(standing, prefix)
    standing.seen_at = moment
    key_id = None
    if standing.key_noted_at is None or now - standing.key_noted_at >= USE_NOTED_EVERY:
        standing.key_noted_at, key_id = now, standing.key_id
    flush.note_seen(agent_id, now, claims, key_id=key_id)
    context.set_credential(standing.credential_id)
    structlog.contextvars.bind_contextvars(principal=standing.actor)
    return HttpResponse(
        answer,
        content_type="application/json",
        headers={"Cache-Control": "no-store", "Allow": "POST, OPTIONS"},
    )


def _standing_of(meta: dict[str, Any], agent_id: uuid.UUID) -> Standing | None:
    header = meta.get("HTTP_AUTHORIZATION", "")
    if not header.startswith("Bearer ") or not header.isascii():
        return None
    standing = memory.standing_of(hashlib.sha256(header[7:].encode()).hexdigest())
    if (
        standing is None
        or standing.agent_id != agent_id
        or meta.get("QUERY_STRING")
        or meta.get("CONTENT_TYPE") not in _JSON
        or meta.get("HTTP_ACCEPT", "") not in _ANY
        or int(meta.get("CONTENT_LENGTH") or 0) > LONGEST_BODY
        or (standing.expires_at is not None and standing.expires_at <= clock.now())
    ):
        return None
    silence = float(settings.BYTEOR_HEARTBEAT_SECONDS) * LATE_AFTER_MISSED
    return standing if time.monotonic() - standing.seen_at < silence else None


def _up_to_date(said: str | None, standing: Standing) -> bool:
    """Is the directive that we would answer with at least the newest that the agent says it has seen?"""
    return said is None or (said.isascii() and said.isdigit() and len(said) <= 19 and int(said) <= standing.seq)


def _signed_body(standing: Standing, prefix: str) -> bytes:
    signed = sign_for(
        agent_id=standing.agent_id,
        environment_id=standing.environment_id,
        desired=standing.desired,
        seq=standing.seq,
        signer=standing.signer,
    )
    document = answer_body(standing.agent_id, signed, prefix=prefix, key_set_version=standing.key_set_version)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _claims(body: bytes, standing: Standing) -> Claims | None:
    """What a heartbeat says, when it says that the agent is well and runs what it ran, in a form that the full view would
    take as it is; None when it says anything else."""
    said = standing.said
    if said is not None and said[0] == body:
        return said[1]
    try:
        value = parse_json(body)
    except BadRequest:
        return None
    if not isinstance(value, dict) or not value.keys() <= _FIELDS:
        return None
    status, version, keys = value.get("status"), value.get("version"), value.get("key_set_version")
    metrics = value.get("metrics", {})
    if not (
        isinstance(status, str)
        and _LINE.match(status)
        and isinstance(version, str)
        and (not version or _LINE.match(version))
        and type(keys) is int
        and 0 <= keys < 2**31
        and isinstance(metrics, dict)
        and _runs_what_it_ran(value.get("running"), standing)
        and _well(value.get("health"), status, standing)
    ):
        return None
    claims = Claims(status, version, keys, json.dumps(metrics))
    standing.said = (body, claims)
    return claims


def _runs_what_it_ran(said: object, standing: Standing) -> bool:
    ran = standing.running
    if said is None or ran is None:
        return said is None and ran is None
    return (
        isinstance(said, dict)
        and said.keys() == _RUNNING_FIELDS
        and type(said["sequence"]) is int
        and said["sequence"] == ran.sequence
        and said["bundle_sha256"] == ran.bundle_sha256
        and said["deployment_id"] == str(ran.deployment_id)
    )


def _well(said: object, status: str, standing: Standing) -> bool:
    if said is None:
        return not standing.health_detail and status.lower() not in UNHEALTHY_WORDS
    if not isinstance(said, dict) or not said.keys() <= {"ok", "detail"}:
        return False
    return said.get("ok") is True and said.get("detail", "") == standing.health_detail
