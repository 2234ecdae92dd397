"""What only a browser needs, left out where a request brings a credential of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from django.contrib.auth import middleware as auth
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from apps.core.problems import is_api_path


class _ForBrowsers(MiddlewareMixin):
    """Stands aside at API paths when there is an `Authorization` header: the API then looks at that alone, never at a session
    (`apps.access.authentication`, `apps.agents.authentication`)."""

    get_response: Callable[[HttpRequest], HttpResponseBase]

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if "HTTP_AUTHORIZATION" in request.META and is_api_path(request.path):
            return self.get_response(request)
        return cast(HttpResponseBase, super().__call__(request))


class SessionMiddleware(_ForBrowsers, sessions.SessionMiddleware):
    """Django's, for browsers."""


class AuthenticationMiddleware(_ForBrowsers, auth.AuthenticationMiddleware):
    """Django's, for browsers."""


class MessageMiddleware(_ForBrowsers, messages.MessageMiddleware):
    """Django's, for browsers."""
