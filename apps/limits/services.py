"""Limits on repeated attempts, kept by django-ratelimit; and the limits of one organization.

Each limit is a group, a key and a rate such as "60/m" (django-ratelimit's notation), counted in fixed windows in the
atomic cache named by `settings.RATELIMIT_USE_CACHE`. A refused attempt counts too. Every refusal is `TooManyRequests`
(429) with the seconds until the window ends.

One thing the library can't express, because it only counts upwards: a successful sign-in does not use up the limit.
Successes are counted in a group of their own, and subtracted when the limit is exceeded (`check_login`).

When that cache is unavailable, requests that would grant access are refused (`Unavailable`, 503): sign-in, and
enrollment with a valid token, because guesses could not be counted. Requests that fail anyway keep their own error (a
wrong credential is 401). Requests with a valid credential are served: they need the database only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import sqlite3
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from django.db import transaction
from django_ratelimit.core import get_usage
from redis.exceptions import RedisError

from apps.audit import services as audit
from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import reason
from apps.core.errors import BadRequest, FieldError, NotFound, PreconditionFailed, TooManyRequests, Unavailable
from apps.limits import overrides
from apps.limits.models import RANGES, RateOverride
from apps.tenancy.models import Environment, Organization
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import lock_organization

log = structlog.get_logger(__name__)

LOGINS_PER_ADDRESS = "60/m"
LOGINS_PER_ACCOUNT_AND_ADDRESS = "10/m"
LOGINS_PER_ACCOUNT_AND_BROWSER = "10/m"
LOGINS_PER_ACCOUNT = "100/m"
LINK_FORMS_PER_ADDRESS = "30/m"
FAILED_AUTHENTICATIONS_PER_ADDRESS = "120/m"
INVITATIONS_PER_PERSON = "50/h"
INVITATIONS_PER_ORGANIZATION = "200/d"
BAD_TOKENS_PER_ADDRESS_AND_ENVIRONMENT = "20/m"


def _usage(group: str, key: str, rate: str, *, increment: bool = True) -> dict[str, Any] | None:
    """Count an attempt, unless not `increment`, and return django-ratelimit's usage, or None if limits are disabled.

    Raises Unavailable if the cache is unavailable or lost the count.
    """
    lost = "the count is gone"
    try:
        # a callable key: services have no request
        usage: dict[str, Any] | None = get_usage(
            None, group=f"byteor.{group}", key=lambda _group, _request: key, rate=rate, increment=increment
        )
        if usage is None or usage["limit"]:
            return usage
    except (RedisError, sqlite3.Error, OSError) as error:
        lost = reason(error)
    log.error("rate limit cache unavailable", group=group, reason=lost)
    raise Unavailable("Rate limiting is unavailable; try again.", code="throttle_unavailable")


def _refuse(usage: dict[str, Any], what: str) -> None:
    # the window includes its last second, and may have ended during the count
    seconds = max(0, usage["time_left"]) + 1
    raise TooManyRequests(f"Too many {what}. Try again in {seconds} seconds.", retry_after=seconds)


def _count(group: str, key: str, rate: str, what: str) -> None:
    """Count an attempt of `key`. Raises TooManyRequests over `rate`, and Unavailable as `_usage`."""
    usage = _usage(group, key, rate)
    if usage is not None and usage["should_limit"]:
        _refuse(usage, what)


def address_group(address: str) -> str:
    """Return the key under which an address is counted: an IPv4 address, or the /64 network of an IPv6 address.

    One host can use any number of addresses of its /64. An IPv4-mapped IPv6 address counts as its IPv4 address. Text
    that is not an address is returned unchanged.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """One check of a password: the client's address and the account name in its normalized spelling.

    `known` is True if this account signed in from this address or browser recently. `browser` is the id of that
    browser.
    """

    address: str
    account: str
    known: bool = False
    browser: str = ""

    @property
    def limits(self) -> list[tuple[str, str, str]]:
        """The (group, key, rate) to count, in order.

        The first one over its rate ends the count, so that a single address can't use up an account's limit for all
        addresses.
        """
        address = address_group(self.address)
        found = [
            ("login.address", address, LOGINS_PER_ADDRESS),
            ("login.account-address", f"{self.account} {address}", LOGINS_PER_ACCOUNT_AND_ADDRESS),
        ]
        if self.browser:
            key = f"{self.account} {self.browser}"
            found.append(("login.account-browser", key, LOGINS_PER_ACCOUNT_AND_BROWSER))
        if not self.known:
            found.append(("login.account", self.account, LOGINS_PER_ACCOUNT))
        return found


def check_login(attempt: LoginAttempt) -> None:
    """Count a sign-in attempt, before its password is checked.

    Raises TooManyRequests over a limit, whether or not the account exists. `login_succeeded` subtracts a success, so
    that only failures count and concurrent attempts can't exceed the limit.
    """
    for group, key, rate in attempt.limits:
        usage = _usage(group, key, rate)
        if usage is None or not usage["should_limit"]:
            continue
        succeeded = _usage(f"{group}.succeeded", key, rate, increment=False)
        if succeeded is None or usage["count"] - succeeded["count"] > usage["limit"]:
            _refuse(usage, "sign-in attempts")


def login_succeeded(attempt: LoginAttempt) -> None:
    """Subtract a successful attempt that `check_login` counted."""
    with contextlib.suppress(Unavailable):
        for group, key, rate in attempt.limits:
            _usage(f"{group}.succeeded", key, rate)


def check_link_form(address: str) -> None:
    """Count a form that sets a password by a one-time link, or that requests such a link.

    Each costs a password hash or a mail. Raises TooManyRequests if its address sent too many.
    """
    _count("link-form", address_group(address), LINK_FORMS_PER_ADDRESS, "forms from this address")


def check_invitation(person: uuid.UUID | None, organization_id: uuid.UUID) -> None:
    """Count an invitation, per inviting user and hour, and per organization and day.

    An invitation sends mail to an address that the inviter chose. Raises TooManyRequests over a limit. While the cache
    is unavailable the invitation is allowed: the inviter has a valid credential.
    """
    with contextlib.suppress(Unavailable):
        if person is not None:
            _count("invite.person", str(person), INVITATIONS_PER_PERSON, "invitations")
        _count("invite.organization", str(organization_id), INVITATIONS_PER_ORGANIZATION, "invitations")


def check_failed_auth(address: str) -> None:
    """Count a request whose credential was refused. Raises TooManyRequests if its address sent too many."""
    with contextlib.suppress(Unavailable):
        rate = FAILED_AUTHENTICATIONS_PER_ADDRESS
        _count("auth", address_group(address), rate, "refused credentials from this address")


def check_enrollment(environment: Environment) -> None:
    """Count an enrollment with a valid token. Raises TooManyRequests if its environment had too many.

    A change of the environment's `enrollments_per_minute` begins a new count.
    """
    rate = f"{environment.enrollments_per_minute}/m"
    _count("enroll", str(environment.pk), rate, "enrollments in this environment")


def check_bad_enrollment(address: str, environment_id: uuid.UUID) -> None:
    """Count an enrollment with an invalid token, per address and environment.

    Clients at other addresses are not affected. Raises TooManyRequests over the limit.
    """
    with contextlib.suppress(Unavailable):
        key = f"{address_group(address)} {environment_id}"
        rate = BAD_TOKENS_PER_ADDRESS_AND_ENVIRONMENT
        _count("enroll.bad", key, rate, "refused enrollment tokens from this address")


def _check_ranges(limits: Mapping[str, int | None]) -> None:
    problems = []
    for name, number in limits.items():
        low, high = RANGES[name]
        if number is not None and not low <= number <= high:
            problems.append(FieldError(f"/{name}", "out_of_range", f"Must be from {low} to {high}, or empty."))
    if problems:
        raise BadRequest("The limits are not valid.", code="invalid_input", errors=problems)


def _locked_override(organization: Organization) -> RateOverride | None:
    """The override of an organization, which is locked. Raises NotFound when the organization is deleted."""
    lock_organization(organization.pk)
    return RateOverride.objects.filter(organization=organization).first()


def _record_override(
    actor: ActorRef, organization: Organization, override_id: uuid.UUID, action: str, details: Mapping[str, object]
) -> None:
    audit.record(
        organization_id=organization.pk,
        action=f"rate_override.{action}",
        actor=actor,
        target=f"rate_override:{override_id}",
        scope=Scope(organization).as_dict(),
        details=details,
    )
    transaction.on_commit(overrides.forget)  # other processes read it anew within seconds


@transaction.atomic
def set_rate_override(
    *,
    actor: ActorRef,
    organization: Organization,
    expected_rev: int | None,
    person_calls: int | None = None,
    agent_calls: int | None = None,
) -> RateOverride:
    """Set the limits a minute of an organization; None is the usual limit. The caller is a superuser.

    `expected_rev` is the revision to replace, None where there is no override yet. Raises BadRequest for a number out of
    its range, PreconditionFailed if another revision is stored, and NotFound if the organization is deleted.
    """
    limits = {"person_calls": person_calls, "agent_calls": agent_calls}
    _check_ranges(limits)
    row = _locked_override(organization)
    if (row.rev if row is not None else None) != expected_rev:
        raise PreconditionFailed("It has changed since you read it.")
    before = {name: getattr(row, name, None) for name in limits}
    changed = {name: number for name, number in limits.items() if number != before[name]}
    if row is None:
        row = RateOverride.objects.create(organization=organization, **limits)
    elif changed:
        RateOverride.objects.filter(pk=row.pk).update(**changed, rev=row.rev + 1, updated_at=clock.now())
        row.refresh_from_db()
    else:
        return row
    details = {"before": {name: before[name] for name in changed}, "after": changed}
    _record_override(actor, organization, row.pk, "set", details)
    return row


@transaction.atomic
def delete_rate_override(*, actor: ActorRef, organization: Organization) -> None:
    """Let the usual limits hold for an organization again. The caller is a superuser.

    Raises NotFound without an override, or if the organization is deleted.
    """
    row = _locked_override(organization)
    if row is None:
        raise NotFound()
    override_id = row.pk
    row.delete()
    before = {name: getattr(row, name) for name in RANGES}
    _record_override(actor, organization, override_id, "deleted", {"before": before})
