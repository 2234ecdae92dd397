"""Every answer that the API gives in a test is as its operation declares it: status, members, code of a problem."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NotRequired, get_origin, get_type_hints, is_typeddict

import pytest

from apps.api.base import ApiView
from apps.api.operations import Operation

COMMON = frozenset(
    {
        # credential, rate, permission, method
        "not_authenticated", "malformed_token", "wrong_credential", "invalid_token", "token_expired", "csrf_failed",
        "rate_limited", "rate_limit_unavailable", "not_found", "permission_denied", "method_not_allowed",
        # input and conditions
        "bad_parameter", "unknown_filter", "bad_filter", "bad_limit", "bad_cursor", "invalid_input", "malformed_body",
        "malformed_json", "duplicate_key", "nested_too_deeply",
        "unsupported_media_type", "not_acceptable", "too_large", "bad_etag", "precondition_failed",
        "precondition_required", "bad_idempotency_key", "bad_request",
        # state and services
        "invalid_transition", "storage_full", "query_timeout", "database_unavailable", "storage_unavailable",
        "key_encryption_key_missing", "internal_error",
    }
)  # fmt: skip
"""Codes that any operation can answer with; `Operation.errors` has those of its own."""


@functools.cache
def members(answer: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The members that a TypedDict requires, and all of its members."""
    declared = get_type_hints(answer, include_extras=True)
    required = frozenset(name for name, kind in declared.items() if get_origin(kind) is not NotRequired)
    return required, frozenset(declared)


def problems_of(document: object, answer: Any) -> list[str]:
    """How a JSON document differs from the members of a TypedDict."""
    if not is_typeddict(answer):
        return []
    if not isinstance(document, Mapping):
        return ["/: an object is declared"]
    required, declared = members(answer)
    missing, extra = required - set(document), set(document) - declared
    return [f"/{name} is missing" for name in missing] + [f"/{name} is not declared" for name in extra]


def judge(declared: Operation, response: Any) -> list[str]:
    """How a response differs from the operation's declaration."""
    data = getattr(response, "data", None)
    if response.status_code >= 400:
        code = data["code"]
        return [] if code in COMMON | set(declared.errors) else [f"the code {code} is not declared"]
    if response.status_code == 304:
        return []
    if response.status_code not in declared.statuses:
        return [f"the status {response.status_code} is not declared"]
    if response.status_code == 204 or declared.answer is None:
        return [] if not data else ["an answer is not declared"]
    if declared.is_list:
        return [problem for row in data["results"] for problem in problems_of(row, declared.answer)]
    return problems_of(data, declared.answer)


@pytest.fixture(autouse=True, scope="session")
def answers_are_as_declared() -> Iterator[None]:
    """Raise an error in every view that answers otherwise than its operation declares."""
    original = ApiView.finalize_response

    def finalize_response(self: ApiView, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, request, response, *args, **kwargs)
        declared = self.operation if request.method != "HEAD" else None
        if declared is not None and (problems := judge(declared, answer)):
            raise AssertionError(f"{request.method} {request.path}: {'; '.join(sorted(set(problems)))}")
        return answer

    ApiView.finalize_response = finalize_response  # type: ignore[method-assign]
    yield
    ApiView.finalize_response = original  # type: ignore[method-assign]
