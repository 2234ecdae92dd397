"""Settings from the environment: accepted values, and refusals in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from byteor import config
from byteor import settings as product
from tests.checks import HOSTED


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(config.PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv(f"{config.PREFIX}DATA_DIR", str(tmp_path))


def set_all(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"{config.PREFIX}{name}", value)


def hosted(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in {**HOSTED, f"{config.PREFIX}PROFILE": "staging"}.items():
        monkeypatch.setenv(name, value)
    set_all(monkeypatch, **values)


def test_a_hosted_profile_does_not_start_without_trusted_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted(monkeypatch)
    monkeypatch.delenv(f"{config.PREFIX}TRUSTED_PROXIES")
    with pytest.raises(config.BadSetting, match="TRUSTED_PROXIES must be set in this profile"):
        config.load()
    set_all(monkeypatch, TRUSTED_PROXIES="none")
    assert config.load().trusted_proxies.networks == ()
    set_all(monkeypatch, TRUSTED_PROXIES="10.0.0.0/8,2001:db8::1")
    assert len(config.load().trusted_proxies.networks) == 2
    set_all(monkeypatch, TRUSTED_PROXIES="nginx")
    with pytest.raises(config.BadSetting, match="'nginx' is no address"):
        config.load()


def test_the_local_profile_trusts_no_proxy_unless_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load().trusted_proxies.networks == ()


@pytest.mark.parametrize(
    ("bind", "origin"),
    [
        ("127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("0.0.0.0:8001", "http://127.0.0.1:8001"),
        ("[::1]:8001", "http://[::1]:8001"),
        ("[::]:8001", "http://[::1]:8001"),
        ("localhost:8001", "http://localhost:8001"),
    ],
)
def test_the_public_address_is_one_that_can_be_opened(monkeypatch: pytest.MonkeyPatch, bind: str, origin: str) -> None:
    set_all(monkeypatch, API_BIND_ADDR=bind)
    loaded = config.load()
    assert (loaded.api_origin, loaded.ui_origin) == (origin, origin)


def test_short_names_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, BIND_ADDR="127.0.0.1:9001", PUBLIC_BASE_URL="http://byteor.lan:9001")
    loaded = config.load()
    assert loaded.api_bind == ("127.0.0.1", 9001)
    assert (loaded.api_origin, loaded.ui_origin) == ("http://byteor.lan:9001", "http://byteor.lan:9001")
    set_all(monkeypatch, UI_PUBLIC_BASE_URL="http://ui.lan")
    assert (config.load().api_origin, config.load().ui_origin) == ("http://byteor.lan:9001", "http://ui.lan")
    set_all(monkeypatch, API_BIND_ADDR="127.0.0.1:9002")
    with pytest.raises(config.BadSetting, match="are aliases and differ"):
        config.load()


def test_a_schema_is_for_postgresql_and_a_plain_name(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, DATABASE_SCHEMA="byteor")
    with pytest.raises(config.BadSetting, match="SQLite has no schemas"):
        config.load()
    set_all(monkeypatch, DATABASE_URL="postgresql://h/d")
    assert config.load().database_schema == "byteor"
    set_all(monkeypatch, DATABASE_SCHEMA="a; drop table x")
    with pytest.raises(config.BadSetting, match="not a name"):
        config.load()


@pytest.mark.parametrize("value", ["http://[::1", "http://h:99999", "http://h:x", "h", "ftp://h"])
def test_an_invalid_origin_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    set_all(monkeypatch, PUBLIC_BASE_URL=value)
    with pytest.raises(config.BadSetting):
        config.load()


def test_the_heartbeat_cache_is_on_unless_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load().heartbeat_cache
    set_all(monkeypatch, HEARTBEAT_CACHE="false")
    assert not config.load().heartbeat_cache
    set_all(monkeypatch, HEARTBEAT_CACHE="off")
    with pytest.raises(config.BadSetting, match="HEARTBEAT_CACHE is 'off', not true or false"):
        config.load()


def test_the_local_profile_answers_under_its_own_names_only() -> None:
    assert product.ALLOWED_HOSTS == ["127.0.0.1", "[::1]", "localhost"]
