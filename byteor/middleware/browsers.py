"""Session, authentication and message middleware for browsers only, skipped for requests with an `Authorization` header."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

from django.conf import settings
from django.contrib.auth import middleware as auth
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from apps.api.problems import is_api_path


class _ForBrowsers(MiddlewareMixin):
    """Skips API requests with an `Authorization` header: the API then uses that credential only, never a session
    (`apps.api.authentication.people`, `apps.api.authentication.agents`)."""

    get_response: Callable[[HttpRequest], HttpResponseBase]

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if "HTTP_AUTHORIZATION" in request.META and is_api_path(request.path):
            return self.get_response(request)
        return cast(HttpResponseBase, super().__call__(request))


_SESSION_KEY = re.compile(r"[a-z0-9]{32}")


class SessionMiddleware(_ForBrowsers, sessions.SessionMiddleware):
    """Django's SessionMiddleware for browsers. Ignores a cookie that is not a valid session key: a quoted value may contain a
    NUL, which PostgreSQL refuses."""

    def process_request(self, request: HttpRequest) -> None:
        name = settings.SESSION_COOKIE_NAME
        if name in request.COOKIES and not _SESSION_KEY.fullmatch(request.COOKIES[name]):
            del request.COOKIES[name]
        super().process_request(request)


class AuthenticationMiddleware(_ForBrowsers, auth.AuthenticationMiddleware):
    """Django's AuthenticationMiddleware for browsers."""


class MessageMiddleware(_ForBrowsers, messages.MessageMiddleware):
    """Django's MessageMiddleware for browsers."""
