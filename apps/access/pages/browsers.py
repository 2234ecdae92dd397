"""A signed cookie that identifies a browser and its recent sign-ins.

It grants no access. Failed attempts from elsewhere do not limit sign-in from a browser that knows the account.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from django.conf import settings
from django.core import signing
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from apps.access.models import User
from apps.access.services.sign_in import KNOWN_FOR, SignInOrigin
from apps.core import clock, context

_SALT = "byteor.browser"
_ACCOUNTS = 5
_SECONDS = int(KNOWN_FOR.total_seconds())


def _cookie_name() -> str:
    return "__Host-browser" if settings.SESSION_COOKIE_SECURE else "browser"


def _remembered(request: HttpRequest) -> tuple[str, dict[str, int]]:
    """Return the cookie's browser id and {`User.browser_key`: time of sign-in}. Empty for a new browser or an invalid
    cookie."""
    try:
        text = request.get_signed_cookie(_cookie_name(), salt=_SALT, max_age=_SECONDS)
        kept: Any = json.loads(text or "")
        return str(kept["id"]), {str(k): int(v) for k, v in kept["accounts"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, signing.BadSignature):
        return "", {}


def sign_in_origin(request: HttpRequest) -> SignInOrigin:
    """Return the origin of this request for the sign-in service."""
    browser, accounts = _remembered(request)
    since = clock.now().timestamp() - _SECONDS
    recent = frozenset(account for account, at in accounts.items() if at > since)
    return SignInOrigin(address=context.current().ip, browser=browser, accounts=recent)


def remember(request: HttpRequest, response: HttpResponseBase, user: User) -> None:
    """Store the sign-in of `user` in the cookie, which keeps the last five users."""
    browser, accounts = _remembered(request)
    accounts.pop(user.browser_key, None)
    latest = sorted(accounts.items(), key=lambda pair: pair[1])[-(_ACCOUNTS - 1) :]
    kept = {
        "id": browser or secrets.token_hex(16),
        "accounts": {**dict(latest), user.browser_key: int(clock.now().timestamp())},
    }
    response.set_signed_cookie(
        _cookie_name(),
        json.dumps(kept, separators=(",", ":")),
        salt=_SALT,
        max_age=_SECONDS,
        secure=bool(settings.SESSION_COOKIE_SECURE),
        httponly=True,
        samesite="Lax",
    )
