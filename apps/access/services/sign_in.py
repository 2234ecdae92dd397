"""Verification of passwords, and begin and end of sessions.

Every way to sign in (the form, an invitation) calls `verify_password` and `begin_session`, and thereby is limited and
recorded. No other module verifies a password or begins a session (`tests/access/test_sign_in.py` checks that).
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field

from django.contrib.auth import login, logout
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.models import Session
from django.db import transaction
from django.http import HttpRequest

from apps.access.models import KnownAddress, User, account_name
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import delete_in_chunks
from apps.core.errors import Unauthenticated
from apps.limits.services import LoginAttempt, address_group, check_login, login_succeeded

KNOWN_FOR = dt.timedelta(days=30)
_NO_USER = uuid.UUID(int=0)


class WrongCredentials(Unauthenticated):
    """The address or the password is wrong, or the account is not active. The error does not state which."""

    def __init__(self) -> None:
        super().__init__("The e-mail address or the password is wrong.", code="wrong_credentials")


@dataclass(frozen=True, slots=True)
class SignInOrigin:
    """Origin of an attempt: the client's address, and the id of its browser.

    `accounts` are the users (`User.browser_key`) who signed in with the browser within 30 days. The id is empty for an
    unknown browser.
    """

    address: str
    browser: str = ""
    accounts: frozenset[str] = field(default_factory=frozenset)


def person_ref(user: User) -> ActorRef:
    """Return the reference to a user in audit events."""
    return ActorRef("person", str(user.pk), str(user))


def verify_password(
    *, account: str, password: str, origin: SignInOrigin, refused_action: str = "session.refused"
) -> User:
    """Return the active user with this address and password.

    The attempt is counted before the password is verified; a failure is recorded as `refused_action`. Known and unknown
    accounts take the same time. Hashes: call it outside transactions. Raises TooManyRequests, Unavailable (attempts
    can't be counted) and WrongCredentials.
    """
    name = account_name(account)
    user = User.objects.filter(email=name).first()
    known_address = KnownAddress.objects.filter(
        user_id=user.pk if user else _NO_USER,
        address=address_group(origin.address),
        last_sign_in_at__gt=clock.now() - KNOWN_FOR,
    ).exists()
    known_browser = user is not None and user.browser_key in origin.accounts
    attempt = LoginAttempt(
        address=origin.address,
        account=name,
        known=known_address or known_browser,
        browser=origin.browser if known_browser else "",
    )
    check_login(attempt)
    if user is None:
        make_password(password)
        right = False
    else:
        right = user.check_password(password) and user.is_active
    if user is None or not right:
        record_refusal(action=refused_action, origin=origin, user=user)
        raise WrongCredentials
    login_succeeded(attempt)
    return user


def record_refusal(*, action: str, origin: SignInOrigin, user: User | None) -> None:
    """Record a wrong password, at most once an hour per address. A name without an account is not stored."""
    audit.record_denial(
        organization_id=None,
        action=action,
        actor=ActorRef("address", address_group(origin.address), ""),
        target="sign-in",
        reason="wrong_credentials",
        scope={"person": str(user.pk)} if user is not None else {},
    )


def begin_session(request: HttpRequest, user: User, *, origin: SignInOrigin, by: str) -> None:
    """Sign `user` in with the browser of `request`, and record it.

    `by` is the proof of identity: `password` or `invitation`. A session of another user in this browser is dropped; the
    session gets a new key.
    """
    with transaction.atomic():
        login(request, user)
        request.session.save()
        KnownAddress.objects.update_or_create(
            user=user, address=address_group(origin.address), defaults={"last_sign_in_at": clock.now()}
        )
        audit.record(
            organization_id=None,
            action="session.started",
            actor=person_ref(user),
            target=f"person:{user.pk}",
            details={"by": by},
        )


def end_session(request: HttpRequest) -> None:
    """Sign out the browser of `request`, and record it. No effect if it is not signed in."""
    with transaction.atomic():
        user = request.user
        logout(request)
        if isinstance(user, User):
            audit.record(
                organization_id=None, action="session.ended", actor=person_ref(user), target=f"person:{user.pk}"
            )


def end_sessions(user: User) -> None:
    """End every session of `user` at once, with a new nonce. In the caller's transaction."""
    user.session_nonce = User.new_session_nonce()
    user.save(update_fields=["session_nonce"])


def forget_expired(now: dt.datetime) -> int:
    """Delete expired sessions and addresses not used for 30 days. Returns the number of rows."""
    sessions = Session.objects.filter(expire_date__lt=now)
    addresses = KnownAddress.objects.filter(last_sign_in_at__lt=now - KNOWN_FOR)
    return delete_in_chunks(sessions) + delete_in_chunks(addresses)
