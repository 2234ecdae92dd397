"""Failed authentications at the API, limited per address."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from apps.core import context
from apps.core.errors import TooManyRequests
from apps.core.problems import is_api_path, problem_response
from apps.limits.services import check_failed_auth

GetResponse = Callable[[HttpRequest], HttpResponseBase]


class FailedAuthMiddleware:
    """Counts the 401 answers of API paths per address; those over the budget become 429.

    A right credential is never refused here, so that one noisy neighbour behind an address locks nobody out.
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
