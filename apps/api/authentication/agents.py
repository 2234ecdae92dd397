"""Authentication of agents: by an enrollment token or a runtime key.

Agent endpoints accept no other credential, and no other endpoint accepts these.
"""

from __future__ import annotations

import functools
import uuid

from django.conf import settings
from django.db.models import QuerySet
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from apps.access import tokens
from apps.access.principals import Principal
from apps.agents import heartbeat_cache
from apps.agents.models import AgentKey, EnrollmentToken
from apps.agents.selectors import working_keys
from apps.agents.services import note_key_use, note_refused_enrollment, usable_token
from apps.api.authentication.people import bearer, expect_family
from apps.core import clock, context
from apps.core.errors import BadRequest, Unauthenticated
from apps.limits import services as limits
from apps.signing import services as signing

LONGEST_IDEMPOTENCY_KEY = 255


def bearer_of_family(request: Request, family: str) -> tokens.ParsedToken:
    """Parse the bearer token of the request; it must be of `family`.

    Raises Unauthenticated: `not_authenticated` without a token, `malformed_token` for a wrong format or checksum,
    `wrong_credential` for any other kind of credential, a browser session included.
    """
    text = bearer(request)
    if text is None:
        if request.COOKIES.get(settings.SESSION_COOKIE_NAME):
            raise Unauthenticated("A browser session is not accepted here.", code="wrong_credential")
        raise Unauthenticated("Authentication credentials were not provided.", code="not_authenticated")
    return expect_family(text, family)


_COLUMNS = (
    *("sha256", "public_id", "first_used_at", "last_used_at", "expires_at"),
    *("agent__name", "agent__environment_id", "agent__last_seen_at", "agent__healthy", "agent__health_detail"),
    *("agent__running_deployment_id", "agent__running_bundle_sha256", "agent__running_sequence", "agent__start_id"),
    *("agent__directive_seq", "agent__directive_content"),
    *("agent__upgrade_asked_at", "agent__upgrade_allowed_version"),
    *("agent__environment__project_id", "agent__environment__agent_upgrade_percent"),
    "agent__environment__project__organization_id",
)


@functools.cache
def keys_with_agents() -> QuerySet[AgentKey]:
    """Working keys with their agents, environments and projects: the columns that the agents' endpoints use. Any other is
    read when it is needed.

    The query is built once, because each request of an agent makes it.
    """
    newest = signing.newest_version_of("agent__environment__project__organization_id")
    keys = working_keys().select_related("agent__environment__project").only(*_COLUMNS)
    return keys.annotate(key_set_version=newest)  # type: ignore[no-redef]  # the model names its type


class AgentKeyAuthentication(BaseAuthentication):
    """Authenticate an agent by its runtime key (`byt_agt_`).

    `request.auth` is the key, with its agent, environment and project (`keys_with_agents`); its `key_set_version` is the
    version of the organization's key set, None without one. Raises Unauthenticated `invalid_token`, `token_expired`, or as
    `bearer_of_family`.
    """

    def authenticate(self, request: Request) -> tuple[Principal, AgentKey]:
        parsed = bearer_of_family(request, "agt")
        key = self.read_key(parsed.sha256)
        if key is None:
            raise Unauthenticated("This key is not valid.")
        if key.expires_at is not None and key.expires_at <= clock.now():
            raise Unauthenticated("This key was replaced and has expired.", code="token_expired")
        note_key_use(key)
        context.set_credential(key.public_id)
        return agent_principal(key), key

    def read_key(self, sha256: str) -> AgentKey | None:
        """The key of this digest, None if there is none that works."""
        try:
            return keys_with_agents().get(sha256=sha256)
        except AgentKey.DoesNotExist:
            return None


class HeartbeatAuthentication(AgentKeyAuthentication):
    """As `AgentKeyAuthentication`, but the key may be one that this process read before: a change takes up to a second to
    take effect (`apps.agents.heartbeat_cache`)."""

    def read_key(self, sha256: str) -> AgentKey | None:
        return heartbeat_cache.read_key(sha256, super().read_key)


def agent_principal(key: AgentKey) -> Principal:
    """The agent's principal."""
    return Principal(
        kind="agent",
        id=key.agent_id,
        name=key.agent.name,
        credential_id=key.public_id,
        via="key",
        organization_id=key.agent.environment.organization_id,
    )


class EnrollmentAuthentication(BaseAuthentication):
    """Authenticate a host by an enrollment token (`byt_enr_`) that can be used now; `request.auth` is the token.

    Raises as `usable_token`, `bearer_of_family` and `idempotency_key_of`. Raises TooManyRequests when this address sent
    too many invalid tokens for the environment of the path.
    """

    def authenticate(self, request: Request) -> tuple[Principal, EnrollmentToken]:
        environment_id: uuid.UUID = request.parser_context["kwargs"]["environment_id"]
        idempotency_key = idempotency_key_of(request)
        digest = ""
        try:
            digest = bearer_of_family(request, "enr").sha256
            token = usable_token(digest, idempotency_key=idempotency_key)
        except Unauthenticated as refusal:
            limits.check_bad_enrollment(context.current().ip, environment_id)
            note_refused_enrollment(digest, reason=refusal.code)
            raise
        context.set_credential(token.public_id)
        return enrollment_principal(token), token


def enrollment_principal(token: EnrollmentToken) -> Principal:
    """The principal of an enrollment token's holder."""
    return Principal(
        kind="enrollment",
        id=token.pk,
        name=token.name or token.public_id,
        credential_id=token.public_id,
        via="key",
        user=None,
    )


def idempotency_key_of(request: Request) -> str | None:
    """The Idempotency-Key header, None without one. Raises BadRequest unless it has 1 to 255 printable ASCII characters."""
    text = request.headers.get("Idempotency-Key")
    if text is None:
        return None
    if not 1 <= len(text) <= LONGEST_IDEMPOTENCY_KEY or not (text.isascii() and text.isprintable()):
        raise BadRequest("An Idempotency-Key has 1 to 255 printable characters.", code="bad_idempotency_key")
    return text
