"""Settings from the environment: typed, and refused with one line when wrong."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from apps.runtime import faults

PREFIX = "BYTEOR_CLOUD_"
PROFILES = ("local", "development", "staging", "production")
HOSTS = {
    "production": ("cloud.byteor.com", "api.byteor.com"),
    "staging": ("cloud.staging.byteor.com", "api.staging.byteor.com"),
    "development": ("cloud.dev.byteor.com", "api.dev.byteor.com"),
}
JOB_LEASE_SECONDS = 30.0
MODES = ("combined", "api", "worker")
ROOT = Path(__file__).resolve().parent.parent


class BadSetting(Exception):
    """A setting that is missing or wrong; the text is the one line to show."""


def refuse(error: BadSetting) -> NoReturn:
    """Say what is wrong in one line and exit 2."""
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


def _address(name: str, default: str) -> tuple[str, int]:
    value = _get(name, default)
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadSetting(f"{PREFIX}{name} is '{value}', not HOST:PORT")
    return host.strip("[]"), int(port)


def _origin(name: str, default: str, *, https: bool) -> str:
    value = _get(name, default).rstrip("/")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.username:
        raise BadSetting(f"{PREFIX}{name} is '{value}', not an origin such as https://cloud.example.com")
    if https and parts.scheme != "https":
        raise BadSetting(f"{PREFIX}{name} must be https in this profile")
    return value


def _flag(name: str) -> bool:
    value = _get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise BadSetting(f"{PREFIX}{name} is '{value}', not true or false")
    return value in ("true", "1")


def _seconds(name: str, default: float, *, fixed: bool) -> float:
    """A time in seconds, at least one; `fixed` profiles take no other than the default."""
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
    """The secret kept in `path`; made of `make` the first time, 0600, the same for whoever comes at the same moment."""
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
    """Every setting, checked. Secrets do not show in its repr."""

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
    secret_key: str = field(repr=False)
    key_encryption_keys: list[tuple[str, bytes]] = field(repr=False)
    email_url: str = field(repr=False)
    run_demo_agents: bool
    metrics_token: str = field(repr=False)
    job_lease_seconds: float

    @property
    def hosted(self) -> bool:
        """True in the profiles that serve other people."""
        return self.profile != "local"

    @property
    def api_prefix(self) -> str:
        """The path prefix that goes with the public API origin."""
        host = urlsplit(self.api_origin).hostname or ""
        return "/v1" if host.startswith("api.") else "/api/v1"

    def derived_keys(self, purpose: str) -> list[tuple[str, bytes]]:
        """(id, 32 bytes) for one purpose from each key-encryption key (which the database never holds), the primary first."""
        return [
            (name, hmac.new(key, purpose.encode(), hashlib.sha256).digest()) for name, key in self.key_encryption_keys
        ]


def load() -> Config:
    """Read the environment. Raises BadSetting with one clear line."""
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
        if len(secret_key) < 50:
            raise BadSetting(f"{PREFIX}SECRET_KEY needs at least 50 characters")
        if any(name.startswith("local") for name, _ in _key_ring(ring_text)):
            raise BadSetting(f"{PREFIX}KEY_ENCRYPTION_KEYS holds a development key, which a hosted profile refuses")
    else:
        ui_default = api_default = f"http://{bind[0]}:{bind[1]}"
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
    return Config(
        profile=profile,
        mode=_choice("DEPLOYMENT_MODE", "combined", MODES),
        data_dir=data_dir,
        api_bind=bind,
        worker_bind=worker_bind,
        api_origin=_origin("API_PUBLIC_BASE_URL", api_default, https=hosted),
        ui_origin=_origin("UI_PUBLIC_BASE_URL", ui_default, https=hosted),
        database_url=database_url,
        redis_url=redis_url,
        storage_url=storage_url,
        secret_key=secret_key,
        key_encryption_keys=_key_ring(ring_text),
        email_url=_get("EMAIL_URL", ""),
        run_demo_agents=_flag("RUN_DEMO_AGENTS"),
        metrics_token=_get("METRICS_TOKEN", ""),
        job_lease_seconds=_seconds("JOB_LEASE_SECONDS", JOB_LEASE_SECONDS, fixed=hosted),
    )
