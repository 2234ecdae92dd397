"""Who speaks on the agents' side: an enrollment token, or a runtime key.

Nothing else is taken here, and these are taken nowhere else.
"""

from __future__ import annotations

import uuid
from typing import Any

import structlog
from django.conf import settings
from django.db.models import QuerySet
from rest_framework.request import Request
from rest_framework.views import APIView

from apps.access import tokens
from apps.access.authentication import bearer, expect_family
from apps.access.principals import Principal
from apps.agents.models import Agent, AgentKey, EnrollmentToken
from apps.agents.services import note_key_use, note_refused_enrollment, usable_token
from apps.audit import services as audit
from apps.core import clock, context
from apps.core.errors import BadRequest, NotFound, Unauthenticated
from apps.core.parsers import StrictJSONParser
from apps.core.prepared import Prepared
from apps.limits import services as limits
from apps.tenancy.selectors import scope_of

LONGEST_IDEMPOTENCY_KEY = 255


def bearer_of_family(request: Request, family: str) -> tokens.ParsedToken:
    """The bearer token of the request, its form checked.

    Raises Unauthenticated: `not_authenticated` without one, `malformed_token` for a typo, `wrong_credential`
    for any other kind of credential, a signed-in browser included.
    """
    text = bearer(request)
    if text is None:
        if request.COOKIES.get(settings.SESSION_COOKIE_NAME):
            raise Unauthenticated("A browser session is not taken here.", code="wrong_credential")
        raise Unauthenticated("Send a credential.", code="not_authenticated")
    return expect_family(text, family)


def _note_principal(principal: Principal) -> None:
    context.set_credential(principal.credential_id or "")
    structlog.contextvars.bind_contextvars(principal=str(principal.ref))


def working_keys() -> QuerySet[AgentKey]:
    """Keys that were not revoked, of agents and environments that are there. Their expiry is not looked at."""
    return AgentKey.objects.filter(
        revoked_at__isnull=True, agent__revoked_at__isnull=True, agent__environment__deleted_at__isnull=True
    )


_key_by_digest = Prepared(
    lambda sha256: working_keys().select_related("agent__environment__project__organization").filter(sha256=sha256)
)


def still_works(key: AgentKey) -> bool:
    """Would `key` be let in this moment?"""
    current = working_keys().filter(pk=key.pk).only("expires_at").first()
    return current is not None and (current.expires_at is None or current.expires_at > clock.now())


def authenticate_agent(request: Request) -> AgentKey:
    """The runtime key of the request, with its agent and the tree above it loaded.

    Raises Unauthenticated `invalid_token`, `token_expired`, or as `bearer_of_family`.
    """
    parsed = bearer_of_family(request, "agt")
    key = _key_by_digest.first(parsed.sha256)
    if key is None:
        raise Unauthenticated("This key is not known.")
    if key.expires_at is not None and key.expires_at <= clock.now():
        raise Unauthenticated("This key was replaced and has expired.", code="token_expired")
    note_key_use(key)
    return key


def agent_principal(key: AgentKey) -> Principal:
    """The agent as a doer."""
    return Principal(
        kind="agent", id=key.agent_id, name=key.agent.name, credential_id=key.public_id, via="key", user=None
    )


def authenticate_enrollment(
    request: Request, environment_id: uuid.UUID, idempotency_key: str | None
) -> EnrollmentToken:
    """The enrollment token of the request, if it lets somebody in now.

    Raises as `usable_token` and `bearer_of_family`; TooManyRequests when this address tried too many that are
    not good at this environment's door.
    """
    digest = ""
    try:
        digest = bearer_of_family(request, "enr").sha256
        token = usable_token(digest, idempotency_key=idempotency_key)
    except Unauthenticated as refusal:
        limits.check_bad_enrollment(context.current().ip, environment_id)
        note_refused_enrollment(digest, reason=refusal.code)
        raise
    _note_principal(enrollment_principal(token))
    return token


def enrollment_principal(token: EnrollmentToken) -> Principal:
    """The holder of an enrollment token as a doer."""
    return Principal(
        kind="enrollment",
        id=token.pk,
        name=token.name or token.public_id,
        credential_id=token.public_id,
        via="key",
        user=None,
    )


def idempotency_key_of(request: Request) -> str | None:
    """The Idempotency-Key header, None without one. BadRequest unless 1 to 255 printable ASCII characters."""
    text = request.headers.get("Idempotency-Key")
    if text is None:
        return None
    if not 1 <= len(text) <= LONGEST_IDEMPOTENCY_KEY or not (text.isascii() and text.isprintable()):
        raise BadRequest("An Idempotency-Key has 1 to 255 printable characters.", code="bad_idempotency_key")
    return text


class AgentView(APIView):
    """Base of what an agent calls about itself: sets `self.agent`, `self.key` and `self.principal`.

    The path names the key's own agent; any other is 404.
    """

    authentication_classes = ()
    permission_classes = ()
    parser_classes = (StrictJSONParser,)

    agent: Agent
    key: AgentKey
    principal: Principal

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        self.key = authenticate_agent(request)
        self.agent = self.key.agent
        self.principal = agent_principal(self.key)
        _note_principal(self.principal)
        named: uuid.UUID = kwargs["agent_id"]
        if named != self.agent.pk:
            audit.record_denial(
                organization_id=None,
                action="agent.access",
                actor=self.principal.ref,
                target=f"agent:{named}",
                reason="another agent's path",
                scope=scope_of(self.agent.environment).as_dict(),
            )
            raise NotFound()
