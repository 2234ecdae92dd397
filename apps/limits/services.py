"""Counting tries and refusing those over a budget.

Fixed windows by django-ratelimit over the atomic cache named by `settings.RATELIMIT_USE_CACHE`. Every
refusal is `TooManyRequests` (429) with the seconds until the window ends.

When that cache does not answer, what would let somebody in is refused (`Unavailable`, 503): a sign-in and an enrollment with
a good token, since nobody could count the guesses. What is refused anyway stays refused as it was (a wrong credential is 401),
and every request with a right credential is served: those need the database only.
"""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from dataclasses import dataclass

import structlog
from django_ratelimit.core import get_usage
from redis.exceptions import RedisError

from apps.core.db import reason
from apps.core.errors import TooManyRequests, Unavailable

log = structlog.get_logger(__name__)

LOGINS_PER_ADDRESS = 60
LOGINS_PER_ACCOUNT = 10
FAILED_AUTHENTICATIONS_PER_ADDRESS = 120
ENROLLMENTS_PER_ENVIRONMENT = 20
BAD_TOKENS_PER_ADDRESS_AND_ENVIRONMENT = 20
_UNBOUNDED = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """How often something was tried in the present window, and the seconds until the next."""

    count: int
    time_left: int


def _usage(group: str, value: str, *, count_this: bool) -> Usage:
    try:
        found = get_usage(
            None,
            group=f"byteor.{group}",
            key=lambda _group, _request: value,
            rate=f"{_UNBOUNDED}/m",
            increment=count_this,
        )
    except (RedisError, sqlite3.Error, OSError) as error:
        log.error("the cache that counts tries does not answer", group=group, reason=reason(error))
        raise Unavailable("Tries can't be counted just now. Try again.", code="throttle_unavailable") from error
    if found is None:  # switched off, or the cache is away and the operator chose to fail open
        return Usage(0, 0)
    if found["limit"] == 0:  # the cache is away: refuse
        return Usage(_UNBOUNDED, 1)
    # the window includes its last second, and may have ended while this was counted
    return Usage(int(found["count"]), max(0, int(found["time_left"])) + 1)


def _refuse_over(budget: int, usage: Usage, what: str, forgiven: int = 0) -> None:
    if usage.count - forgiven > budget:
        raise TooManyRequests(f"Too many {what}. Try again in {usage.time_left} seconds.", retry_after=usage.time_left)


def _account(account: str) -> str:
    return account.strip().casefold()[:254]


def check_login(*, address: str, account: str) -> None:
    """Count an attempt to sign in, before the password is looked at. Raises TooManyRequests over the budget
    of the address or of the account, known or not. What succeeds is given back by `login_succeeded`, so that
    only failures count, and yet many at once can't slip through."""
    _judge_login("address", address, LOGINS_PER_ADDRESS)
    _judge_login("account", _account(account), LOGINS_PER_ACCOUNT)


def _judge_login(kind: str, value: str, budget: int) -> None:
    usage = _usage(f"login.{kind}", value, count_this=True)
    forgiven = _usage(f"login.{kind}.well", value, count_this=False).count if usage.count > budget else 0
    _refuse_over(budget, usage, "sign-in attempts", forgiven)


def login_succeeded(*, address: str, account: str) -> None:
    """The attempt that `check_login` counted was right: it does not count."""
    with contextlib.suppress(Unavailable):
        _usage("login.address.well", address, count_this=True)
        _usage("login.account.well", _account(account), count_this=True)


def check_failed_auth(address: str) -> None:
    """Count a request whose credential was refused. Raises TooManyRequests when its address had too many."""
    with contextlib.suppress(Unavailable):
        usage = _usage("auth", address, count_this=True)
        _refuse_over(FAILED_AUTHENTICATIONS_PER_ADDRESS, usage, "refused credentials from this address")


def check_enrollment(environment_id: uuid.UUID) -> None:
    """Count an enrollment with a valid token. Raises TooManyRequests when its environment had too many."""
    usage = _usage("enroll", str(environment_id), count_this=True)
    _refuse_over(ENROLLMENTS_PER_ENVIRONMENT, usage, "enrollments in this environment")


def check_bad_enrollment(address: str, environment_id: uuid.UUID) -> None:
    """Count an enrollment with a bad token, against the address and the environment together: strangers
    elsewhere lock nobody out. Raises TooManyRequests when there were too many."""
    with contextlib.suppress(Unavailable):
        usage = _usage("enroll.bad", f"{address} {environment_id}", count_this=True)
        _refuse_over(BAD_TOKENS_PER_ADDRESS_AND_ENVIRONMENT, usage, "refused enrollment tokens from this address")
