"""Rate limit of failed API authentications per address."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from apps.api.problems import is_api_path, problem_response
from apps.core import context
from apps.core.errors import TooManyRequests
from apps.limits.services import check_failed_auth

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class FailedAuthMiddleware:
    """Counts 401 responses of API paths per address and turns those over the limit into 429.

    A valid credential is never refused, so that one client cannot lock out others behind the same address.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if response.status_code == 401 and is_api_path(request.path):
            try:
                check_failed_auth(context.current().ip)
            except TooManyRequests as error:
                response.close()
                return problem_response(error, request.path)
        return response
