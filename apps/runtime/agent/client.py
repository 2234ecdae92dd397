"""HTTP to one control plane and to no other host."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from apps.runtime.agent import VERSION
from apps.runtime.agent.exchange import Connection, UnsendableRequest
from apps.runtime.agent.skew import ServerClock

MAX_JSON_BYTES = 2 * 1024 * 1024
LONGEST_PAUSE = 60.0
_MAX_HEAD_BYTES = 256 * 1024


class Unreachable(Exception):
    """The control plane did not answer, or answered 5xx or 429: try again later."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refused(Exception):
    """The control plane refused: HTTP `status`, its `code` and detail."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail


class Unsendable(Refused):
    """A request of ours that can't be sent to any server: not the control plane's fault, and trying again is useless."""

    def __init__(self, detail: str) -> None:
        super().__init__(0, "request_unsendable", detail)


class BadAddress(Exception):
    """The URL given is not one the agent talks to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's JSON. Unreachable when it is none, as from a proxy in between."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise Unreachable("the answer is not JSON") from None

    def retry_after(self) -> float | None:
        """The seconds that `Retry-After` asks for, at most a minute; None when it asks for none that can be read."""
        text = self.headers.get("retry-after", "")
        if not (text.isascii() and text.isdigit()):
            return None
        return LONGEST_PAUSE if len(text) > 9 else min(float(text), LONGEST_PAUSE)


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """Speaks to the origin of `base_url` (`https://host/prefix`) only: follows no redirect, no proxy variable.

    Raises BadAddress for plain http to anything but loopback, unless `allow_http`.
    """

    def __init__(self, base_url: str, *, allow_http: bool = False) -> None:
        parts = urlsplit(base_url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.username
            or parts.query
            or parts.fragment
        ):
            raise BadAddress(f"{base_url!r} is not an http(s) address")
        if parts.scheme == "http" and not allow_http and not is_loopback(parts.hostname):
            raise BadAddress("plain http goes to loopback only; use https, or --allow-http")
        self.scheme, self.host, self.port = parts.scheme, parts.hostname, parts.port
        self.prefix = parts.path.rstrip("/")
        self.base_url = f"{parts.scheme}://{parts.netloc}{self.prefix}"
        self.clock = ServerClock()

    def call(
        self,
        method: str,
        path: str,
        *,
        token: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float = 15.0,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> Answer:
        """One request below the prefix; the whole exchange ends within `timeout`.

        Raises Unreachable, Refused for 4xx and redirects, or Unsendable.
        """
        sent = {"Authorization": f"Bearer {token}", "User-Agent": f"byteor-agent/{VERSION}", **(headers or {})}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = Connection(self.scheme, self.host, self.port)
        connection.begin(time.monotonic() + timeout, 2 * max_bytes + _MAX_HEAD_BYTES)
        try:
            response = connection.ask(method, self.prefix + path, data, sent)
            raw = response.read(max_bytes + 1)
            found = {name.lower(): value for name, value in response.getheaders()}
        except UnsendableRequest as error:
            raise Unsendable(str(error)) from error
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # a chunk of a negative length is a ValueError
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        self.clock.note(found.get("date"))
        if len(raw) > max_bytes:
            raise Refused(response.status, "answer_too_large", f"the answer has more than {max_bytes} bytes")
        answer = Answer(response.status, found, raw)
        if 200 <= answer.status < 300:
            return answer
        self._raise(answer)
        raise AssertionError  # _raise always raises

    def _raise(self, answer: Answer) -> None:
        try:
            problem = json.loads(answer.body)
        except (ValueError, RecursionError):
            problem = {}
        problem = problem if isinstance(problem, dict) else {}
        code, detail = (_text(problem.get(name), most) for name, most in (("code", 64), ("detail", 500)))
        if answer.status >= 500 or answer.status in (408, 429):
            raise Unreachable(f"{answer.status} {code}", answer.retry_after())
        if answer.status < 400:
            raise Refused(answer.status, "redirected", "redirects are not followed")
        raise Refused(answer.status, code, detail)


def _text(value: object, most: int) -> str:
    return value[:most] if isinstance(value, str) else ""
