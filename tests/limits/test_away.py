"""While the counting cache is unavailable, requests that would grant access are refused and all others are served."""

from __future__ import annotations

import uuid

import pytest

from apps.core.errors import Unavailable
from apps.limits import services as limits
from apps.tenancy.models import Environment
from tests.flows.world import free_port

ATTEMPT = limits.LoginAttempt(address="127.0.0.1", account="a@example.com")


@pytest.fixture(autouse=True)
def _cache_unavailable(settings) -> None:
    nowhere = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{free_port()}/0",
        "OPTIONS": settings.CACHES["limits"].get("OPTIONS", {}),
    }
    settings.CACHES = {**settings.CACHES, "limits": nowhere}


def test_sign_in_and_enrollment_are_refused() -> None:
    for attempt in (
        lambda: limits.check_login(ATTEMPT),
        lambda: limits.check_link_form("127.0.0.1"),
        lambda: limits.check_enrollment(Environment()),
    ):
        with pytest.raises(Unavailable) as refused:
            attempt()
        assert (refused.value.code, refused.value.headers["Retry-After"]) == ("throttle_unavailable", "2")


def test_other_refusals_keep_their_error_and_a_successful_sign_in_stays() -> None:
    limits.check_failed_auth("127.0.0.1")
    limits.check_bad_enrollment("127.0.0.1", uuid.uuid4())
    limits.login_succeeded(ATTEMPT)
