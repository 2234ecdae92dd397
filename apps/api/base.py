"""Base views: caller, scope of the path, permission, input and answer, in the order of checks that the API documents."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import structlog
from django.db import models
from django.utils.cache import patch_vary_headers
from rest_framework.authentication import BaseAuthentication
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.access import policy
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.agents.models import Agent, AgentKey
from apps.api.authentication.agents import AgentKeyAuthentication
from apps.api.authentication.people import PersonAuthentication
from apps.api.operations import Handler, Operation, operation_of
from apps.api.pagination import keyset_page
from apps.api.parameters import check_parameters, included_members
from apps.api.parsers import MergePatchParser, StrictJSONParser
from apps.api.rates import headers_of, refusal_of, window_of
from apps.api.serializers import validated_data
from apps.audit import services as audit
from apps.core import waits
from apps.core.errors import MethodNotAllowed, NotFound, Unauthenticated
from apps.limits import windows
from apps.limits.windows import Taken
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import require_with_path, resolve, scope_of


class ApiView(APIView):
    """Base of every API view. Its methods are declared with `@operation`.

    A request passes, in this order: its credential (`authentication_classes`, 401), the caller's rate window (429),
    `authorize` (404, 403), `find` (404), the query parameters (400), the body (400), and the method. The method finds
    the caller in `self.principal`, the resource of the path in `self.found`, the parameters in `self.query` and the input
    in `self.given`. Responses are `Cache-Control: no-store` and vary by credential. A 201 has a `Location`. OPTIONS
    answers with `Allow`.
    """

    authentication_classes: Sequence[type[BaseAuthentication]] = [PersonAuthentication]
    permission_classes = ()
    parser_classes = [StrictJSONParser, MergePatchParser]
    renderer_classes = [JSONRenderer]

    leases_slots: ClassVar[bool] = False
    """Whether calls use slots of the caller's rate window that this process leased: for calls that come for ever."""
    ignores_unknown_parameters: ClassVar[bool] = False
    """Whether query parameters that no operation declares are ignored: for clients that may be newer than this server."""
    rate: Taken | None = None
    principal: Principal
    found: Any = None
    query: Mapping[str, Any] = {}
    given: Mapping[str, Any] = {}

    @property
    def operation(self) -> Operation | None:
        """The operation of this request; None for a method that the view does not have, and for OPTIONS."""
        return operation_of(type(self), str(self.request.method))

    def get_authenticators(self) -> list[BaseAuthentication]:
        declared = self.operation if self.request is not None else None
        if declared is not None and declared.authentication is not None:
            return [declared.authentication()]
        return super().get_authenticators()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if not isinstance(request.user, Principal):
            raise Unauthenticated("Authentication credentials were not provided.", code="not_authenticated")
        self.principal = request.user
        structlog.contextvars.bind_contextvars(principal=str(self.principal.ref))
        self.count_call(request)
        self.authorize(request)

    def count_call(self, request: Request) -> None:
        """Count this call in its caller's window, once, however often a server that waits calls the view for it.

        Raises TooManyRequests.
        """
        window = window_of(self.principal)
        if window is None:
            return
        kept = waits.kept(request)
        if "rate" in kept:
            self.rate = kept["rate"]
            return
        self.rate = kept["rate"] = windows.lease(window) if self.leases_slots else windows.take(window)
        if not self.rate.allowed:
            raise refusal_of(self.rate)

    def authorize(self, request: Request) -> None:
        """Check the caller's permission for the path and method, before any other check.

        Raises NotFound when the caller may not see the resource, Forbidden when it may not perform the method.
        """

    def find(self) -> Any:
        """Return the resource that the path names, None for views without one. Raises NotFound."""
        return None

    def perform(self, declared: Operation, method: Handler) -> Any:
        """Check resource, query parameters and body, then call the method of an operation and return its response."""
        self.found = self.find()
        if not declared.is_list:
            self.query = check_parameters(
                self.request, declared.parameters, ignores_unknown=self.ignores_unknown_parameters
            )
        if declared.body is not None and declared.parses_body:
            self.given = validated_data(declared.body, self.request.data)
        return method(self, self.request)

    def page(
        self,
        rows: models.QuerySet[Any],
        render: Callable[..., Mapping[str, object]],
        *,
        prepare: Callable[[Sequence[Any]], None] | None = None,
    ) -> Response:
        """Respond with a page of `rows`, with the filters and long members of the operation (`keyset_page`).

        `render(row)`, or `render(row, members)` where there are long members.
        """
        declared = self.operation
        assert declared is not None
        long = declared.long_members
        wanted = included_members(self.request, *long) if long else None
        return keyset_page(
            self.request,
            rows,
            render if wanted is None else lambda row: render(row, wanted),
            filters=declared.filters,
            prepare=prepare,
            long_members=long,
        )

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        answer = super().finalize_response(request, response, *args, **kwargs)
        answer["Cache-Control"] = "no-store"
        patch_vary_headers(answer, ["Authorization", "Cookie"])
        if self.rate is not None:
            for name, value in headers_of(self.rate).items():
                answer[name] = value
        if answer.status_code == 201 and "Location" not in answer:
            where = self.location(request, answer.data)
            if where is not None:
                answer["Location"] = where
        return answer

    def location(self, request: Any, body: Any) -> str | None:
        """The path of the created resource (RFC 9110 §15.3.2), below the path of the list; None when it has no path."""
        return f"{request.path}/{body['id']}" if isinstance(body, dict) and "id" in body else None

    def options(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        """Answer 204 with the allowed methods in `Allow`."""
        return Response(status=204)

    def http_method_not_allowed(self, request: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise MethodNotAllowed(f"{request.method} is not allowed on this resource.")


class AgentView(ApiView):
    """Base of the views that an agent calls about itself.

    Sets `self.agent`, `self.key` and `self.key_set_version`, all from the query of its authentication. The path must name
    the key's own agent; any other is 404.
    """

    authentication_classes = [AgentKeyAuthentication]
    parser_classes = [StrictJSONParser]
    ignores_unknown_parameters = True
    agent: Agent
    key: AgentKey
    key_set_version: int

    def authorize(self, request: Request) -> None:
        self.key = request.auth  # type: ignore[assignment]
        self.agent = self.key.agent
        self.key_set_version = self.key.key_set_version or 0
        named: uuid.UUID = self.kwargs["agent_id"]
        if named != self.agent.pk:
            audit.record_denial(
                organization_id=None,
                action="agent.access",
                actor=self.principal.ref,
                target=f"agent:{named}",
                reason="another agent's path",
                any_target=True,
                scope=scope_of(self.agent.environment).as_dict(),
            )
            raise NotFound()


PARENTS = ("org_id", "project_id", "environment_id")


class ScopedView(ApiView):
    """Base of the views below an organization, project or environment of the path.

    `level` names the deepest of them; the resource that the path names below it is a row of `queryset`, or is found by
    `lookup`. Sets `self.scope`. An id that is unknown, is not under the path's parents or may not be seen is 404. A resource
    that is visible but not permitted is 403, with an audit row.
    """

    level: ClassVar[str] = "environment"
    queryset: ClassVar[models.QuerySet[Any] | None] = None
    """Rows of environments, of which the path names one by its id. It is read together with the path."""
    lookup: ClassVar[Callable[[Scope, Any], object] | None] = None
    """`lookup(scope, id)` raises NotFound when the scope has no resource of that id."""
    scope: Scope

    @classmethod
    def permission_for(cls, method: str) -> Permission:
        """The permission that `method` needs. An unsupported method is 405 for callers who may view."""
        declared = operation_of(cls, method) or operation_of(cls, "GET")
        return (declared.permission if declared is not None else None) or policy.VIEW_OF_LEVEL[cls.level]

    def authorize(self, request: Request) -> None:
        ids: list[uuid.UUID] = [self.kwargs[name] for name in PARENTS[: policy.LEVELS.index(self.level) + 1]]
        permission = self.permission_for("GET" if request.method == "OPTIONS" else str(request.method))
        try:
            self.scope = self._read_path(*ids)
        except NotFound:
            policy.refuse_unknown(self.principal, permission, *ids)
            raise
        structlog.contextvars.bind_contextvars(**self.scope.as_dict())
        decision = policy.can(self.principal, permission, self.scope)
        if isinstance(decision, policy.Denied):
            if decision.visible:
                self.find()
            policy.refuse(self.principal, permission, self.scope, decision)

    def _read_path(self, organization_id: uuid.UUID, *below: uuid.UUID) -> Scope:
        """Return the scope of the path, and set `self.found` to the row of `queryset` that it names. Raises NotFound.

        The row is read for callers with a role there only: to others the time of a 404 must not show whether it exists.
        """
        if self.queryset is not None:
            project_id, environment_id = below
            if any(at == organization_id and on in (None, project_id) for at, on, _ in self.principal.roles):
                with contextlib.suppress(NotFound):
                    self.found = require_with_path(
                        self.queryset,
                        self._named(),
                        organization_id=organization_id,
                        project_id=project_id,
                        environment_id=environment_id,
                    )
                    return scope_of(self.found.environment)
        return resolve(organization_id, *below)

    def _named(self) -> Any:
        """The id in the path below `level`, None without one."""
        return next((value for name, value in self.kwargs.items() if name not in PARENTS), None)

    def find(self) -> Any:
        lookup, named = type(self).lookup, self._named()
        if lookup is not None and named is not None:
            return lookup(self.scope, named)
        if self.queryset is not None and self.found is None:
            raise NotFound()
        return self.found

    @property
    def environment(self) -> Environment:
        """The environment of the path."""
        return self.scope.require_environment()


def no_content_response() -> Response:
    """An empty 204 response."""
    return Response(status=204)
