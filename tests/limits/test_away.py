"""The cache that counts tries is away: what would let somebody in is closed, all else goes on."""

from __future__ import annotations

import uuid

import pytest

from apps.core.errors import Unavailable
from apps.limits import services as limits
from tests.flows.world import free_port


@pytest.fixture(autouse=True)
def _nobody_counts(settings) -> None:
    nowhere = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{free_port()}/0",
        "OPTIONS": settings.CACHES["limits"].get("OPTIONS", {}),
    }
    settings.CACHES = {**settings.CACHES, "limits": nowhere}


def test_sign_in_and_enrollment_are_closed() -> None:
    for door in (
        lambda: limits.check_login(address="127.0.0.1", account="a@example.com"),
        lambda: limits.check_enrollment(uuid.uuid4()),
    ):
        with pytest.raises(Unavailable) as refused:
            door()
        assert (refused.value.code, refused.value.headers["Retry-After"]) == ("throttle_unavailable", "2")


def test_what_is_refused_anyway_is_refused_as_ever_and_a_sign_in_that_was_let_in_is_not_undone() -> None:
    limits.check_failed_auth("127.0.0.1")
    limits.check_bad_enrollment("127.0.0.1", uuid.uuid4())
    limits.login_succeeded(address="127.0.0.1", account="a@example.com")
