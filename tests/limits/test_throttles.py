"""The limits on attempts, seen by an anonymous client."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.core.cache import caches
from django.test import Client

from apps.core import clock
from apps.core.errors import TooManyRequests, Unavailable
from apps.limits import services
from apps.limits.services import LoginAttempt
from apps.tenancy.models import Environment
from tests.support import attempts_of

pytestmark = pytest.mark.usefixtures("one_window")


def refused(call: Callable[[], None]) -> bool:
    try:
        call()
    except TooManyRequests as error:
        caught = error
    else:
        return False
    assert 1 <= caught.retry_after <= 61
    return True


def test_a_window_that_ends_during_a_count_refuses_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = caches["limits"]
    count = cache.add

    with time_machine.travel(clock.now(), tick=False) as traveller:

        def slowly(*args: object, **options: object) -> bool:
            added = bool(count(*args, **options))  # type: ignore[arg-type]
            traveller.shift(61)
            return added

        monkeypatch.setattr(cache, "add", slowly)
        services.check_enrollment(Environment())


def test_an_attempt_whose_count_the_cache_lost_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # as when the entry is evicted between the library's two calls
    monkeypatch.setattr(caches["limits"], "add", lambda *_given, **_options: False)
    with pytest.raises(Unavailable) as refused:
        services.check_login(attempt())
    assert refused.value.code == "throttle_unavailable"


def attempt(address: str = "10.0.0.1", account: str = "a@example.com", **known: Any) -> LoginAttempt:
    return LoginAttempt(address=address, account=account, **known)


def refused_at(*attempts: LoginAttempt) -> list[bool]:
    return [refused(lambda each=each: services.check_login(each)) for each in attempts]  # type: ignore[misc]


def test_failed_sign_ins_at_one_account_from_one_address_end_with_429_and_other_addresses_are_served() -> None:
    budget = attempts_of(services.LOGINS_PER_ACCOUNT_AND_ADDRESS)
    assert refused_at(*[attempt()] * (budget + 1)) == [False] * budget + [True]
    assert refused_at(attempt("10.0.0.2"), attempt(account="b@example.com")) == [False, False]


def test_one_address_can_not_use_up_the_limit_of_an_account_for_all_addresses() -> None:
    refused_at(*[attempt()] * attempts_of(services.LOGINS_PER_ADDRESS))
    others = [attempt(f"10.0.1.{n}") for n in range(attempts_of(services.LOGINS_PER_ACCOUNT))]
    assert refused_at(*others).count(True) == attempts_of(services.LOGINS_PER_ACCOUNT_AND_ADDRESS)


def test_failed_sign_ins_at_one_account_from_many_addresses_end_with_429_but_not_where_it_is_known() -> None:
    budget = attempts_of(services.LOGINS_PER_ACCOUNT)
    assert refused_at(*[attempt(f"10.0.1.{n}") for n in range(budget + 1)]) == [False] * budget + [True]
    assert refused_at(attempt("10.0.2.1"), attempt("10.0.2.1", known=True)) == [True, False]
    assert refused_at(attempt("10.0.2.2", known=True, browser="b1")) == [False]


def test_a_known_browser_has_a_budget_of_its_own_wherever_it_goes() -> None:
    budget = attempts_of(services.LOGINS_PER_ACCOUNT_AND_BROWSER)
    moving = [attempt(f"10.0.3.{n}", known=True, browser="b1") for n in range(budget + 1)]
    assert refused_at(*moving) == [False] * budget + [True]


def test_failed_sign_ins_from_one_address_end_with_429_for_any_account() -> None:
    outcomes = refused_at(
        *[attempt(account=f"p{n}@example.com") for n in range(attempts_of(services.LOGINS_PER_ADDRESS) + 1)],
    )
    assert outcomes.count(True) == 1
    assert outcomes[-1]
    assert refused_at(attempt("10.0.0.2", "p1@example.com")) == [False]


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_addresses_that_one_host_can_choose_among_count_as_one(address: str, group: str) -> None:
    assert services.address_group(address) == group


def test_a_successful_sign_in_does_not_count() -> None:
    for _ in range(3 * attempts_of(services.LOGINS_PER_ACCOUNT_AND_ADDRESS)):
        services.check_login(attempt())
        services.login_succeeded(attempt())
    for _ in range(attempts_of(services.LOGINS_PER_ACCOUNT_AND_ADDRESS)):
        services.check_login(attempt())
    assert refused(lambda: services.check_login(attempt()))


def test_an_attempt_after_retry_after_is_served() -> None:
    wait = 0
    for _ in range(attempts_of(services.LOGINS_PER_ACCOUNT_AND_ADDRESS) + 1):
        try:
            services.check_login(attempt())
        except TooManyRequests as error:
            wait = error.retry_after
    assert wait
    with time_machine.travel(clock.now() + dt.timedelta(seconds=wait + 0.5), tick=False):
        services.check_login(attempt())


def test_concurrent_attempts_do_not_exceed_the_limit() -> None:
    gate, passed = threading.Barrier(16), []

    def try_it() -> None:
        gate.wait()
        for _ in range(4):
            passed.append(not refused(lambda: services.check_login(attempt("10.0.0.9", "x@example.com"))))

    threads = [threading.Thread(target=try_it) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed.count(True) == attempts_of(services.LOGINS_PER_ACCOUNT_AND_ADDRESS)


@pytest.mark.django_db
def test_refused_credentials_of_one_address_become_429_and_other_addresses_are_served(client: Client) -> None:
    def attempt(address: str) -> int:
        return client.get("/api/v1/me", HTTP_AUTHORIZATION="Bearer nonsense", REMOTE_ADDR=address).status_code

    codes = [attempt("10.9.9.9") for _ in range(attempts_of(services.FAILED_AUTHENTICATIONS_PER_ADDRESS) + 1)]
    assert codes == [401] * attempts_of(services.FAILED_AUTHENTICATIONS_PER_ADDRESS) + [429]
    answer = client.get("/api/v1/me", HTTP_AUTHORIZATION="Bearer nonsense", REMOTE_ADDR="10.9.9.9")
    assert answer["Content-Type"].startswith("application/problem+json")
    assert answer.json()["code"] == "rate_limited"
    assert int(answer["Retry-After"]) >= 1
    assert attempt("10.9.9.8") == 401
