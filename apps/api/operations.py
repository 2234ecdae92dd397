"""Declarations of endpoints: what each method of a view needs, accepts and answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.response import Response

from apps.access.roles import Permission
from apps.api.parameters import Filter, Parameter
from apps.api.serializers import StrictSerializer


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of a view needs, accepts and answers.

    `permission` is needed at the scope of the path; None for views without one. `body` validates the JSON input, which the
    handler finds in `self.given`; None if it takes no body or, with `parses_body` false, reads the body itself.
    `parameters` are the query parameters of anything but a list; a list has `filters`, and `long_members` that are only in
    it when `?include=` names them. `answer` is the type of the JSON document of each of the `statuses`, of each row for a
    list, or None without JSON. `errors` are the codes of problems that are this operation's own. `authentication` replaces
    the view's.
    """

    permission: Permission | None = None
    body: type[StrictSerializer] | None = None
    parses_body: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    answer: Any = None
    is_list: bool = False
    filters: Mapping[str, Filter] = field(default_factory=dict)
    long_members: tuple[str, ...] = ()
    statuses: tuple[int, ...] = (200,)
    errors: tuple[str, ...] = ()
    authentication: type[BaseAuthentication] | None = None


Handler = Callable[[Any, Any], Any]


def operation(
    permission: Permission | None = None, *, lists: Any = None, status: int | tuple[int, ...] = 200, **declared: Any
) -> Callable[[Handler], Callable[..., Response]]:
    """Declare a method of an `ApiView` as an operation, with the members of `Operation`.

    `lists` is the type of each row of a list. The method is called as `method(self, request)` after the caller, the
    permission, the resource of the path, the query parameters and the body have been checked: see `ApiView`. Views that share
    a method declare it each with their own permission: `get = operation(Permission.VIEW_ORG, answer=…)(Base.read)`.
    """
    if lists is not None:
        declared |= {"answer": lists, "is_list": True}
    statuses = (status,) if isinstance(status, int) else status
    made = Operation(permission=permission, statuses=statuses, **declared)

    def declare(method: Handler) -> Callable[..., Response]:
        @functools.wraps(method)
        def handler(view: Any, request: Any, *args: Any, **kwargs: Any) -> Response:
            answer: Response = view.perform(made, method)
            return answer

        handler.operation = made  # type: ignore[attr-defined]
        return handler

    return declare


def operation_of(view: type[Any], method: str) -> Operation | None:
    """The operation of an HTTP method of a view; None for a method that it does not have. HEAD is that of GET."""
    name = "get" if method == "HEAD" else method.lower()
    declared: Operation | None = getattr(getattr(view, name, None), "operation", None)
    return declared if name in view.http_method_names else None
