"""The throttles, as a stranger meets them."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
import time_machine
from django.core.cache import caches
from django.test import Client

from apps.core import clock
from apps.core.errors import TooManyRequests
from apps.limits import services


@pytest.fixture(autouse=True)
def _one_window() -> Iterator[None]:
    caches["limits"].clear()
    # a real clock might pass from one window into the next within a test
    with time_machine.travel(clock.now(), tick=False):
        yield


def refused(call: Callable[[], None]) -> bool:
    try:
        call()
    except TooManyRequests as error:
        return 1 <= error.retry_after <= 60
    return False


def test_a_window_that_ends_while_somebody_is_counted_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = caches["limits"]
    count = cache.add

    with time_machine.travel(clock.now(), tick=False) as traveller:

        def slowly(*args: object, **options: object) -> bool:
            added = bool(count(*args, **options))  # type: ignore[arg-type]
            traveller.shift(61)
            return added

        monkeypatch.setattr(cache, "add", slowly)
        services.check_enrollment(uuid.uuid4())


def test_failed_sign_ins_of_one_account_end_with_429_from_wherever_they_come() -> None:
    outcomes = [
        refused(lambda i=i: services.check_login(address=f"10.0.0.{i}", account="Alice@Example.com"))  # type: ignore[misc]
        for i in range(services.LOGINS_PER_ACCOUNT + 1)
    ]
    assert outcomes == [False] * services.LOGINS_PER_ACCOUNT + [True]
    assert refused(lambda: services.check_login(address="10.0.1.1", account=" alice@example.com "))
    assert not refused(lambda: services.check_login(address="10.0.1.1", account="bob@example.com"))


def test_failed_sign_ins_from_one_address_end_with_429_whoever_they_try() -> None:
    outcomes = [
        refused(lambda i=i: services.check_login(address="10.0.0.1", account=f"p{i}@example.com"))  # type: ignore[misc]
        for i in range(services.LOGINS_PER_ADDRESS + 1)
    ]
    assert outcomes.count(True) == 1
    assert outcomes[-1]
    assert not refused(lambda: services.check_login(address="10.0.0.2", account="p1@example.com"))


def test_signing_in_rightly_does_not_count() -> None:
    for _ in range(3 * services.LOGINS_PER_ACCOUNT):
        services.check_login(address="10.0.0.1", account="a@example.com")
        services.login_succeeded(address="10.0.0.1", account="a@example.com")
    for _ in range(services.LOGINS_PER_ACCOUNT):
        services.check_login(address="10.0.0.1", account="a@example.com")
    assert refused(lambda: services.check_login(address="10.0.0.1", account="a@example.com"))


def test_waiting_as_long_as_said_makes_room() -> None:
    wait = 0
    for _ in range(services.LOGINS_PER_ACCOUNT + 1):
        try:
            services.check_login(address="10.0.0.1", account="a@example.com")
        except TooManyRequests as error:
            wait = error.retry_after
    assert wait
    with time_machine.travel(clock.now() + dt.timedelta(seconds=wait + 0.5), tick=False):
        services.check_login(address="10.0.0.1", account="a@example.com")


def test_many_at_once_get_no_more_than_the_budget() -> None:
    gate, passed = threading.Barrier(16), []

    def attempt() -> None:
        gate.wait()
        for _ in range(4):
            passed.append(not refused(lambda: services.check_login(address="10.0.0.9", account="x@example.com")))

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed.count(True) == services.LOGINS_PER_ACCOUNT


@pytest.mark.django_db
def test_refused_credentials_of_one_address_become_429_and_others_are_let_alone(client: Client) -> None:
    def attempt(address: str) -> int:
        return client.get("/api/v1/me", HTTP_AUTHORIZATION="Bearer nonsense", REMOTE_ADDR=address).status_code

    codes = [attempt("10.9.9.9") for _ in range(services.FAILED_AUTHENTICATIONS_PER_ADDRESS + 1)]
    assert codes == [401] * services.FAILED_AUTHENTICATIONS_PER_ADDRESS + [429]
    answer = client.get("/api/v1/me", HTTP_AUTHORIZATION="Bearer nonsense", REMOTE_ADDR="10.9.9.9")
    assert answer["Content-Type"].startswith("application/problem+json")
    assert answer.json()["code"] == "rate_limited"
    assert int(answer["Retry-After"]) >= 1
    assert attempt("10.9.9.8") == 401
