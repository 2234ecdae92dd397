"""Typed settings from the environment. A wrong value is refused with a one-line error."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import environ
from django.core.exceptions import ImproperlyConfigured

from apps.runtime import faults
from byteor.server.proxies import TrustedProxies

PREFIX = "BYTEOR_CLOUD_"
PROFILES = ("local", "development", "staging", "production")
HOSTS = {
    "production": ("cloud.byteor.com", "api.byteor.com"),
    "staging": ("cloud.staging.byteor.com", "api.staging.byteor.com"),
    "development": ("cloud.dev.byteor.com", "api.dev.byteor.com"),
}
JOB_LEASE_SECONDS = 30.0
JOB_WORKERS = 2
MODES = ("combined", "api", "worker")
ROOT = Path(__file__).resolve().parent.parent


class BadSetting(Exception):
    """Raised for a missing or wrong setting; the text is the error to show."""


def refuse(error: BadSetting) -> NoReturn:
    """Print the error in one line and exit with status 2."""
    sys.stderr.write(f"byteor: {error}\n")
    raise SystemExit(2)


def _get(name: str, default: str | None = None) -> str:
    value = os.environ.get(PREFIX + name, "")
    if value:
        return value
    if default is None:
        raise BadSetting(f"{PREFIX}{name} must be set in this profile")
    return default


def _choice(name: str, default: str, among: tuple[str, ...]) -> str:
    value = _get(name, default)
    if value not in among:
        raise BadSetting(f"{PREFIX}{name} is '{value}', not one of {', '.join(among)}")
    return value


def _alias(name: str, alias: str) -> str:
    """The value of `name` or its `alias`; "" when neither is set. Raises BadSetting when they differ."""
    value, other = _get(name, ""), _get(alias, "")
    if value and other and value != other:
        raise BadSetting(f"{PREFIX}{name} and {PREFIX}{alias} are aliases and differ")
    return value or other


def http_origin(host: str, port: int) -> str:
    """`http://HOST:PORT` by which a server bound to `host` is reached from the same machine: IPv6 in brackets, the loopback
    address in place of "every address"."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _trusted_proxies(*, hosted: bool) -> TrustedProxies:
    value = _get("TRUSTED_PROXIES", "")
    if not value and hosted:
        raise BadSetting(
            f"{PREFIX}TRUSTED_PROXIES must be set in this profile: the addresses or networks of the proxies in front, or none"
        )
    try:
        return TrustedProxies.parse(value or "none")
    except ValueError as error:
        raise BadSetting(f"{PREFIX}TRUSTED_PROXIES: {error}") from None


def _secret_keys(text: str, *, hosted: bool) -> list[str]:
    """The secret keys: the first signs and all verify, so that a key rotation does not invalidate existing signatures."""
    keys = [part.strip() for part in text.split(",")]
    if hosted and any(len(key) < 50 for key in keys):
        raise BadSetting(f"{PREFIX}SECRET_KEY needs at least 50 characters, in each part of a comma list")
    if not all(keys) or len(set(keys)) != len(keys):
        raise BadSetting(f"{PREFIX}SECRET_KEY has an empty part, or one twice")
    return keys


def _direct_url(database_url: str) -> str:
    value = _get("DATABASE_DIRECT_URL", "")
    if value and not value.startswith(("postgres://", "postgresql://")):
        raise BadSetting(f"{PREFIX}DATABASE_DIRECT_URL is not postgresql://…")
    if value and database_url.startswith("sqlite:"):
        raise BadSetting(f"{PREFIX}DATABASE_DIRECT_URL is for PostgreSQL behind a pooler")
    if value and _get("DATABASE_SCHEMA", ""):
        raise BadSetting(
            f"{PREFIX}DATABASE_SCHEMA is set for a session, which a pooler does not keep: ALTER ROLE … SET search_path instead"
        )
    return value


def _schema(database_url: str) -> str:
    value = _get("DATABASE_SCHEMA", "")
    if value and not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value):
        raise BadSetting(f"{PREFIX}DATABASE_SCHEMA is '{value}', not a name of lower-case letters, digits and _")
    if value and database_url.startswith("sqlite:"):
        raise BadSetting(f"{PREFIX}DATABASE_SCHEMA is for PostgreSQL: SQLite has no schemas")
    return value


def _address(name: str, default: str) -> tuple[str, int]:
    value = _alias(name, "BIND_ADDR") if name == "API_BIND_ADDR" else _get(name, "")
    value = value or default
    host, _, port = value.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise BadSetting(f"{PREFIX}{name} is '{value}', not HOST:PORT")
    return host.strip("[]"), int(port)


def _origin(name: str, default: str, *, https: bool) -> str:
    value = (_get(name, "") or _get("PUBLIC_BASE_URL", "") or default).rstrip("/")
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - raises when it is no port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.username:
        raise BadSetting(f"{PREFIX}{name} is '{value}', not an origin such as https://cloud.example.com")
    if https and parts.scheme != "https":
        raise BadSetting(f"{PREFIX}{name} must be https in this profile")
    return value


def _email(url: str, *, sender: str) -> dict[str, Any]:
    """Django's settings for sending mail, from `smtp://`, `smtps://` (STARTTLS), `smtp+ssl://`, `filemail:///…` or
    `consolemail://`, with `?from=address` for another sender than `sender`. Empty without a URL."""
    if not url:
        return {}
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        chosen = query.pop("from", sender)
        found: dict[str, Any] = environ.Env.email_url_config(urlunsplit(parts._replace(query="")))
    except (ImproperlyConfigured, ValueError):
        raise BadSetting(f"{PREFIX}EMAIL_URL is not a mail URL such as smtps://user:password@host:587") from None
    if query or "@" not in chosen or any(c in chosen for c in "\r\n"):
        raise BadSetting(f"{PREFIX}EMAIL_URL takes one option, ?from=ADDRESS")
    if parts.scheme.startswith("smtp") and not parts.hostname:
        raise BadSetting(f"{PREFIX}EMAIL_URL names no host")
    names = ("EMAIL_BACKEND", "EMAIL_HOST", "EMAIL_PORT", "EMAIL_HOST_USER", "EMAIL_HOST_PASSWORD", "EMAIL_FILE_PATH")
    kept = {name: found[name] for name in (*names, "EMAIL_USE_TLS", "EMAIL_USE_SSL") if found.get(name)}
    if "EMAIL_FILE_PATH" in kept:
        kept["EMAIL_FILE_PATH"] = f"/{kept['EMAIL_FILE_PATH']}"
    if parts.scheme.startswith("smtp"):
        kept.setdefault("EMAIL_PORT", {"smtp": 25, "smtp+ssl": 465}.get(parts.scheme, 587))
    return {**kept, "DEFAULT_FROM_EMAIL": f"ByteOr Cloud <{chosen}>", "EMAIL_TIMEOUT": 10}


def _flag(name: str, default: str = "false") -> bool:
    value = _get(name, default).lower()
    if value not in ("true", "false", "1", "0"):
        raise BadSetting(f"{PREFIX}{name} is '{value}', not true or false")
    return value in ("true", "1")


def _seconds(name: str, default: float, *, fixed: bool) -> float:
    """A duration in seconds, at least one; `fixed` profiles accept the default only."""
    value = _get(name, str(default))
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise BadSetting(f"{PREFIX}{name} is '{value}', not 1 to 3600 seconds")
    if fixed and seconds != default:
        raise BadSetting(f"{PREFIX}{name} can be set in the local profile only")
    return seconds


def _key_ring(text: str) -> list[tuple[str, bytes]]:
    ring: list[tuple[str, bytes]] = []
    for part in text.split(","):
        name, _, encoded = part.strip().partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            key = b""
        if not name or len(key) != 32:
            raise BadSetting(f"{PREFIX}KEY_ENCRYPTION_KEYS holds id:base64 pairs of 32-byte keys, comma separated")
        ring.append((name, key))
    if len({name for name, _ in ring}) != len(ring):
        raise BadSetting(f"{PREFIX}KEY_ENCRYPTION_KEYS names an id twice")
    return ring


def _once(path: Path, make: str) -> str:
    """The secret stored in `path` (mode 0600), created from `make` the first time. Safe for concurrent first calls."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(make + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return path.read_text().strip()


@dataclass(frozen=True)
class Config:
    """All settings, validated. Its repr omits secrets."""

    profile: str
    mode: str
    data_dir: Path
    api_bind: tuple[str, int]
    worker_bind: tuple[str, int]
    api_origin: str
    ui_origin: str
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    storage_url: str
    database_direct_url: str = field(repr=False)
    secret_keys: list[str] = field(repr=False)
    key_encryption_keys: list[tuple[str, bytes]] = field(repr=False)
    email: dict[str, Any] = field(repr=False)
    sends_mail: bool
    run_demo_agents: bool
    metrics_token: str = field(repr=False)
    job_lease_seconds: float
    trusted_proxies: TrustedProxies
    database_schema: str
    heartbeat_cache: bool

    @property
    def hosted(self) -> bool:
        """True in every profile but `local`."""
        return self.profile != "local"

    @property
    def api_prefix(self) -> str:
        """The path prefix of the API at its public origin."""
        host = urlsplit(self.api_origin).hostname or ""
        return "/v1" if host.startswith("api.") else "/api/v1"

    def derived_keys(self, purpose: str) -> list[tuple[str, bytes]]:
        """(id, 32 bytes) for one purpose from each key-encryption key (which the database never holds), the primary first."""
        return [
            (name, hmac.new(key, purpose.encode(), hashlib.sha256).digest()) for name, key in self.key_encryption_keys
        ]


def load() -> Config:
    """Read the settings from the environment. Raises BadSetting."""
    profile = _choice("PROFILE", "local", PROFILES)
    hosted = profile != "local"
    data_dir = Path(_get("DATA_DIR", str(ROOT / ".byteor"))).expanduser().resolve()
    bind = _address("API_BIND_ADDR", "127.0.0.1:8080")
    worker_bind = _address("WORKER_BIND_ADDR", "127.0.0.1:8081")
    if hosted:
        if os.environ.get(faults.VARIABLE):
            raise BadSetting(f"{faults.VARIABLE} is for tests: it is refused in this profile")
        ui_host, api_host = HOSTS[profile]
        ui_default, api_default = f"https://{ui_host}", f"https://{api_host}"
        secret_key = _get("SECRET_KEY")
        ring_text = _get("KEY_ENCRYPTION_KEYS")
        database_url, redis_url, storage_url = _get("DATABASE_URL"), _get("REDIS_URL"), _get("STORAGE_URL")
        if any(name.startswith("local") for name, _ in _key_ring(ring_text)):
            raise BadSetting(f"{PREFIX}KEY_ENCRYPTION_KEYS holds a development key, which a hosted profile refuses")
    else:
        ui_default = api_default = http_origin(*bind)
        keys = data_dir / "secrets"
        secret_key = _get("SECRET_KEY", "") or _once(keys / "secret_key", secrets.token_urlsafe(64))
        fresh = base64.b64encode(secrets.token_bytes(32)).decode()
        ring_text = _get("KEY_ENCRYPTION_KEYS", "") or _once(keys / "key_encryption_keys", f"local-1:{fresh}")
        database_url, redis_url = (
            _get("DATABASE_URL", f"sqlite:///{data_dir / 'byteor.sqlite3'}"),
            _get("REDIS_URL", ""),
        )
        storage_url = _get("STORAGE_URL", (data_dir / "blobs").as_uri())
    if not storage_url.startswith(("file:///", "s3://")):
        raise BadSetting(f"{PREFIX}STORAGE_URL is neither file:///… nor s3://bucket/prefix")
    if not database_url.startswith(("sqlite:///", "postgres://", "postgresql://")):
        raise BadSetting(f"{PREFIX}DATABASE_URL is neither sqlite:///… nor postgresql://…")
    if redis_url and not redis_url.startswith(("redis://", "rediss://", "unix://")):
        raise BadSetting(f"{PREFIX}REDIS_URL is not redis://…")
    ui_origin = _origin("UI_PUBLIC_BASE_URL", ui_default, https=hosted)
    ui_host_name = urlsplit(ui_origin).hostname or "localhost"
    return Config(
        profile=profile,
        mode=_choice("DEPLOYMENT_MODE", "combined", MODES),
        data_dir=data_dir,
        api_bind=bind,
        worker_bind=worker_bind,
        api_origin=_origin("API_PUBLIC_BASE_URL", api_default, https=hosted),
        ui_origin=ui_origin,
        database_url=database_url,
        redis_url=redis_url,
        storage_url=storage_url,
        database_direct_url=_direct_url(database_url),
        secret_keys=_secret_keys(secret_key, hosted=hosted),
        key_encryption_keys=_key_ring(ring_text),
        email=_email(_get("EMAIL_URL", "" if hosted else "consolemail://"), sender=f"no-reply@{ui_host_name}"),
        sends_mail=not hosted or bool(_get("EMAIL_URL", "")),
        run_demo_agents=_flag("RUN_DEMO_AGENTS"),
        metrics_token=_get("METRICS_TOKEN", ""),
        job_lease_seconds=_seconds("JOB_LEASE_SECONDS", JOB_LEASE_SECONDS, fixed=hosted),
        trusted_proxies=_trusted_proxies(hosted=hosted),
        database_schema=_schema(database_url),
        heartbeat_cache=_flag("HEARTBEAT_CACHE", "true"),
    )
