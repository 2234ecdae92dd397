"""Authentication of people: by a browser session with CSRF, or by a personal bearer token."""

from __future__ import annotations

import datetime as dt
import functools

from django.db import OperationalError, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from apps.access import tokens
from apps.access.models import PersonalToken, User, known_roles, with_roles
from apps.access.principals import Principal, person_principal
from apps.api.problems import is_api_host
from apps.core import clock, context
from apps.core.db import is_full
from apps.core.errors import Forbidden, Unauthenticated

LAST_USED_EVERY = dt.timedelta(minutes=1)


def bearer(request: Request | HttpRequest) -> str | None:
    """The bearer credential of a request (RFC 6750 §2.1), or None when it carries none."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthenticated("Send 'Authorization: Bearer <token>'.", code="malformed_token")
    return text.strip()


def expect_family(text: str, *families: str) -> tokens.ParsedToken:
    """Parse a token. Raises Unauthenticated `wrong_credential` for one of another family."""
    parsed = tokens.parse(text)
    if parsed.family not in families:
        raise Unauthenticated(
            f"A byt_{parsed.family}_ credential is not accepted here; this needs "
            + " or ".join(f"byt_{family}_" for family in families)
            + ".",
            code="wrong_credential",
        )
    return parsed


_COLUMNS = (
    *("public_id", "expires_at", "last_used_at", "revoked_at"),
    *("user__email", "user__name", "user__is_active", "user__is_superuser"),
)


@functools.cache
def _tokens_with_roles() -> QuerySet[PersonalToken]:
    """Built once, because each request by token makes this query."""
    return with_roles(PersonalToken.objects.select_related("user").only(*_COLUMNS), "user")


def principal_of_personal_token(text: str) -> Principal:
    """The principal of a `byt_pat_` token's owner.

    Raises Unauthenticated `malformed_token`, `wrong_credential`, `invalid_token` or `token_expired`.
    """
    parsed = expect_family(text, "pat")
    rows = list(_tokens_with_roles().filter(sha256=parsed.sha256))
    row = rows[0] if rows else None
    if row is None or row.revoked_at is not None or not row.user.is_active:
        raise Unauthenticated("This token is not valid.", code="invalid_token")
    now = clock.now()
    if row.expires_at <= now:
        raise Unauthenticated("This token has expired.", code="token_expired")
    if row.last_used_at is None or now - row.last_used_at > LAST_USED_EVERY:
        try:
            with transaction.atomic():
                PersonalToken.objects.filter(pk=row.pk, last_used_at=row.last_used_at).update(last_used_at=now)
        except OperationalError as error:
            if not is_full(error):
                raise
            # a full disk must not block reads; a write that follows reports it
    context.set_credential(row.public_id)
    row.user.known_roles = known_roles(rows)
    return person_principal(row.user, via="token", credential_id=row.public_id)


def _no_answer(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


class _Csrf(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> str:
        return reason


class PersonAuthentication(BaseAuthentication):
    """Authenticate people: by `Authorization: Bearer byt_pat_…`, or by a session with a CSRF token on unsafe methods.

    A session is not accepted on hosts named `api.*`.
    """

    def authenticate(self, request: Request) -> tuple[Principal, str] | None:
        text = bearer(request)
        if text is not None:
            return principal_of_personal_token(text), "token"
        user = getattr(request._request, "user", None)
        if not isinstance(user, User) or not user.is_active:
            return None
        if is_api_host(request._request):
            raise Unauthenticated("Sessions are not accepted on this host.", code="wrong_credential")
        check = _Csrf(_no_answer)
        check.process_request(request._request)
        reason = check.process_view(request._request, _no_answer, (), {})
        if reason:
            raise Forbidden("The CSRF token is missing or wrong.", code="csrf_failed")
        credential_id = f"session_{(request._request.session.session_key or '')[:6]}"
        context.set_credential(credential_id)
        return person_principal(user, via="session", credential_id=credential_id), "session"
