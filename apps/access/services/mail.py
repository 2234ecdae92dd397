"""Mail with one-time links: requested in the transaction of its cause, sent by a job after the commit.

All mail goes through `request_mail`. A link's token is derived from the request and the secret key, so that a mail sent
twice has the same link and the database holds only its SHA-256.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import smtplib
import uuid
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.urls import reverse
from django.utils.crypto import salted_hmac

from apps.access.models import MailKind, MailRequest, Membership, MemberStatus, PasswordReset, User
from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.db import lock_row
from apps.core.isolation import for_each

log = structlog.get_logger(__name__)

RESET_LASTS = dt.timedelta(hours=1)
RESETS_PER_HOUR = 3
WAITING_AT_MOST = 10_000
RUN_SECONDS = 60.0
_GIVE_UP = {MailKind.PASSWORD_RESET.value: RESET_LASTS, MailKind.INVITATION.value: dt.timedelta(days=7)}


def mail_is_sent() -> bool:
    """Return whether this installation sends mail. (The local profile prints it by default.)"""
    return bool(settings.BYTEOR_SENDS_MAIL)


def digest_of(token: str) -> str:
    """Return the stored form of a one-time token: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def request_mail(kind: MailKind, *, email: str, membership: Membership | None = None) -> None:
    """Request a mail, in the caller's transaction.

    A new invitation replaces a waiting one; a second password reset adds nothing while the first waits. No effect if no
    mail is sent.
    """
    if not mail_is_sent():
        return
    if membership is not None:
        MailRequest.objects.filter(membership=membership).delete()
    elif MailRequest.objects.filter(membership__isnull=True).count() >= WAITING_AT_MOST:
        log.error("password reset mail dropped: too many are waiting")
        return
    MailRequest.objects.bulk_create(
        [MailRequest(kind=kind.value, email=email, membership=membership)], ignore_conflicts=True
    )


def send_due(now: dt.datetime) -> int:
    """Send the mails that are due, each separately. Returns the number sent.

    A mail that fails is retried until its link would have expired.
    """
    due = MailRequest.objects.filter(next_attempt_at__lte=now).order_by("next_attempt_at", "pk")
    return for_each(
        "mail", list(due.values_list("pk", flat=True)), lambda pk: _send_or_put_off(pk, now), seconds=RUN_SECONDS
    )


def _send_or_put_off(pk: uuid.UUID, now: dt.datetime) -> int:
    row: MailRequest | None = MailRequest.objects.filter(pk=pk).first()
    if row is None:
        return 0
    try:
        return _send(row)
    except (smtplib.SMTPException, OSError, ValueError) as error:  # ValueError: its address or subject can't be encoded
        _try_later(row, now, type(error).__name__)
        return 0


def _try_later(row: MailRequest, now: dt.datetime, problem: str) -> None:
    over = row.created_at + _GIVE_UP[row.kind] <= now
    log.error("mail could not be sent", kind=row.kind, attempt=row.attempts + 1, problem=problem, given_up=over)
    if over:
        row.delete()
        return
    wait = dt.timedelta(seconds=min(600, 5 * 2 ** min(row.attempts, 10)))
    MailRequest.objects.filter(pk=row.pk).update(attempts=row.attempts + 1, next_attempt_at=now + wait)


def _send(row: MailRequest) -> int:
    made = _invitation(row) if row.kind == MailKind.INVITATION.value else _password_reset(row)
    if made is not None:
        subject, text, to = made
        host = urlsplit(settings.BYTEOR_UI_BASE_URL).hostname or "localhost"
        EmailMessage(subject, text, to=[to], headers={"Message-ID": f"<{row.pk}@{host}>"}).send()
    row.delete()
    return 1 if made is not None else 0


def _token(row: MailRequest) -> str:
    secret = salted_hmac("byteor.mailed-link", str(row.pk), algorithm="sha256").digest()
    return base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


def _link(name: str, token: str) -> str:
    return f"{settings.BYTEOR_UI_BASE_URL}{reverse(name, args=[token])}"


def _invitation(row: MailRequest) -> tuple[str, str, str] | None:
    token = _token(row)
    assert row.membership_id is not None
    open_one = Membership.objects.filter(
        pk=row.membership_id,
        status=MemberStatus.INVITED,
        invitation_expires_at__gt=clock.now(),
        organization__deleted_at__isnull=True,
    )
    member = open_one.select_related("organization", "project").first()
    if member is None or not open_one.update(mailed_sha256=digest_of(token)):
        return None
    place = str(member.project or member.organization)
    text = (
        f"You are invited to {place} on ByteOr Cloud as {member.get_role_display()}.\n\n"
        f"{_link('auth-invitation', token)}\n\n"
        "The link works once, for seven days. If you did not expect this, do nothing.\n"
    )
    return f"Invitation to {_one_line(place)}", text, member.email


def _password_reset(row: MailRequest) -> tuple[str, str, str] | None:
    token = _token(row)
    with transaction.atomic():
        user = lock_row(User.objects.filter(email=row.email, is_active=True))
        if user is None:
            return None
        since = clock.now() - dt.timedelta(hours=1)
        others = PasswordReset.objects.filter(user=user, created_at__gt=since).exclude(sha256=digest_of(token))
        if others.count() >= RESETS_PER_HOUR:
            return None
        _, new = PasswordReset.objects.get_or_create(
            sha256=digest_of(token), defaults={"user": user, "expires_at": clock.now() + RESET_LASTS}
        )
        if new:
            audit.record(
                organization_id=None,
                action="password.reset_mailed",
                actor=SYSTEM_ACTOR,
                target=f"person:{user.pk}",
            )
    text = (
        f"A new password was requested for {user.email} on ByteOr Cloud.\n\n"
        f"{_link('auth-reset-password', token)}\n\n"
        "The link works once, for one hour. If you did not request it, do nothing: your password is unchanged.\n"
    )
    return "A new password for ByteOr Cloud", text, user.email


def _one_line(text: str) -> str:
    return " ".join(text.split())[:100]
