"""Structured logs, also of libraries: JSON, or readable lines when standard error is a terminal."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from typing import Any

import structlog

_LINK = re.compile(r"(/auth/(?:invitations|reset)/)[^\s\"'?#]+")


def hide_links(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Remove the secret from one-time links: libraries log the path of a request that they refuse."""
    for name, value in event.items():
        if isinstance(value, str) and "/auth/" in value:
            event[name] = _LINK.sub(r"\1…", value)
    return event


BRIEF = "BYTEOR_LOG_BRIEF"
"""Environment variable that requests a brief, readable log. `up` sets it for its children."""
_ROUTINE_ROUTES = ("/heartbeat", "/deployment", "healthz", "readyz")
_FIELDS_OF_PROGRAMS = ("request_id", "organization_id", "project_id", "environment_id", "principal")
ROUTINE_EVERY = 60.0


class BriefFilter(logging.Filter):
    """Logging filter that replaces the requests of agents and probes by a count, at most one line a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._count = 0
        self._counted_since = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        event: object = record.msg
        if not isinstance(event, dict) or event.get("event") != "request":
            return True
        if not str(event.get("route")).endswith(_ROUTINE_ROUTES) or int(event.get("status", 500)) >= 300:
            return True
        with self._lock:
            self._count += 1
            if time.monotonic() - self._counted_since < ROUTINE_EVERY:
                return False
            event = {"event": "heartbeats, polls and probes", "count": self._count, "level": "info"}
            self._count, self._counted_since = 0, time.monotonic()
        record.msg = event
        return True


def leave_out_ids(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Remove ids from the log line of a successful request."""
    if event.get("event") == "request" and event.get("level") == "info":
        for name in (*_FIELDS_OF_PROGRAMS, "logger"):
            event.pop(name, None)
    return event


_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


MOST_CHARACTERS = 300


class OneLine(logging.Filter):
    """Logging filter for Django's records about refused requests: one line, at most WARNING, without a traceback.

    Any client can cause them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage()[:MOST_CHARACTERS], ()
        record.exc_info = record.exc_text = None
        if record.levelno > logging.WARNING:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def configure() -> dict[str, Any]:
    """Configure structlog and return Django's `LOGGING`. Every line has the bound request, principal and tenant ids."""
    terminal = sys.stderr.isatty()
    brief = terminal and bool(os.environ.get(BRIEF))
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    last: list[Any] = (
        [*([leave_out_ids] if brief else []), structlog.dev.ConsoleRenderer()]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "structured": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _SHARED,
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, hide_links, *last],
            }
        },
        "filters": {"brief": {"()": BriefFilter}, "one_line": {"()": OneLine}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "structured",
                "filters": ["brief"] if brief else [],
            },
            "refused": {
                "class": "logging.StreamHandler",
                "formatter": "structured",
                "filters": ["one_line", "brief"] if brief else ["one_line"],
            },
        },
        "root": {"handlers": ["stderr"], "level": "INFO"},
        "loggers": {
            # django-q2 logs every task; apps.jobs logs the relevant job events
            "django-q": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "django.server": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "django": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            # a 4xx is not an error of the server, and is in our own request log
            "django.request": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
            "django.security": {"handlers": ["refused"], "level": "WARNING", "propagate": False},
            "botocore": {"level": "WARNING"},
        },
    }
