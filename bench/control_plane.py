"""The control plane to measure: on a PostgreSQL database of its own, called through the whole WSGI application."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import psycopg

from tests.services import postgres


@contextlib.contextmanager
def control_plane() -> Iterator[str]:
    """Django set up on a fresh, migrated PostgreSQL database, which is dropped at the end; its URL. Once in a process."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres(durable=True))
        name = f"byteor_bench_{secrets.token_hex(6)}"
        with psycopg.connect(server, autocommit=True) as raw:
            raw.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        url = f"{server.rsplit('/', 1)[0]}/{name}"
        try:
            data = stack.enter_context(tempfile.TemporaryDirectory(prefix="byteor-bench-"))
            for variable in [v for v in os.environ if v.startswith("BYTEOR_CLOUD_")]:
                del os.environ[variable]
            os.environ |= {
                "DJANGO_SETTINGS_MODULE": "byteor.settings",
                "BYTEOR_CLOUD_DATABASE_URL": url,
                "BYTEOR_CLOUD_DATA_DIR": data,
            }
            import django

            django.setup()
            from django.core.management import call_command
            from django.db import connections

            call_command("migrate", verbosity=0)
            try:
                yield url
            finally:
                from apps.agents.heartbeat_cache import close_heartbeat_cache
                from apps.core import wake

                close_heartbeat_cache()
                wake.close()
                connections.close_all()
        finally:
            with psycopg.connect(server, autocommit=True) as raw:
                raw.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")  # type: ignore[arg-type]


@contextlib.contextmanager
def log_in_a_file() -> Iterator[None]:
    """The log, which is written as always, goes to a file and not to the screen."""
    screen = os.dup(2)
    try:
        with tempfile.TemporaryFile() as log:
            os.dup2(log.fileno(), 2)
            yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def tokens_of(person: Any, count: int = 40) -> Iterator[str]:
    """Personal tokens of `person`, in turns without end: each has a rate window of its own, which one caller would fill."""
    from apps.access import services as access
    from apps.access.principals import person_principal

    actor = person_principal(person)
    return itertools.cycle([access.create_token(actor=actor, name="bench").text.reveal() for _ in range(count)])


class Application:
    """A WSGI application, called in this process as a server calls it: nothing of the application is left out, and the server's
    own cost, which would be the same on both sides, is not there."""

    def __init__(self, application: Any) -> None:
        self.application = application

    def call(self, method: str, path: str, body: bytes = b"", token: str = "", **headers: str) -> tuple[int, bytes]:
        path, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "127.0.0.1:8080",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/json",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
        if token:
            environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        for name, value in headers.items():
            environ[f"HTTP_{name.upper()}"] = value
        started: list[str] = []
        answer = self.application(environ, lambda status, headers, exc_info=None: started.append(status))
        try:
            content = b"".join(answer)
        finally:
            answer.close()
        return int(started[0][:3]), content

    def json(self, method: str, path: str, body: object = None, token: str = "", expect: int = 200) -> Any:
        """The parsed answer; SystemExit when it is not what was expected."""
        data = b"" if body is None else json.dumps(body).encode()
        status, content = self.call(method, path, data, token)
        if status != expect:
            raise SystemExit(f"{method} {path}: {status} {content[:500]!r}")
        return json.loads(content) if content else None


def bare(urlpatterns: list[Any], middleware: list[str]) -> Application:
    """A Django application of its own in this process: these paths and middlewares, everything else as in ours."""
    import types

    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler

    module = types.ModuleType(f"bench_urls_{secrets.token_hex(4)}")
    module.urlpatterns = urlpatterns  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    kept = settings.MIDDLEWARE
    settings.MIDDLEWARE = middleware
    try:
        handler = WSGIHandler()
    finally:
        settings.MIDDLEWARE = kept
    inner = handler._middleware_chain

    def with_own_paths(request: Any) -> Any:
        from django.urls import set_urlconf

        request.urlconf = module.__name__
        set_urlconf(module.__name__)
        return inner(request)

    handler._middleware_chain = with_own_paths
    return Application(handler)
