"""View bases: who is calling, where, and may they; in the contract's order of checks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

import structlog
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.access import policy
from apps.access.authentication import PersonAuthentication, is_anonymous
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.core.errors import MethodNotAllowed, Unauthenticated
from apps.core.parsers import MergePatchParser, StrictJSONParser
from apps.core.serializers import StrictSerializer, validated
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import resolve

LEVELS = ("organization", "project", "environment")
PARENTS = ("org_id", "project_id", "environment_id")


class PersonView(APIView):
    """A view for a signed-in person or their personal token. Sets `self.principal`; 401 otherwise."""

    authentication_classes = [PersonAuthentication]
    permission_classes = ()
    parser_classes = [StrictJSONParser, MergePatchParser]
    renderer_classes = [JSONRenderer]
    principal: Principal

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if is_anonymous(request.user):
            raise Unauthenticated("Send a credential.", code="not_authenticated")
        self.principal = request.user  # type: ignore[assignment]
        structlog.contextvars.bind_contextvars(principal=str(self.principal.ref))

    def read(self, serializer: type[StrictSerializer], **kwargs: Any) -> dict[str, Any]:
        """The JSON body, checked strictly. Raises what the exception handler answers with 400 or 415."""
        return validated(serializer, self.request.data, **kwargs)

    def http_method_not_allowed(self, request: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise MethodNotAllowed(f"{request.method} is not known here.")


class ScopedView(PersonView):
    """A view below an organization, project or environment of the path.

    `level` says which; `permissions` maps each method to what it needs there; `finds` looks up what the path names below
    that level. Sets `self.scope`. An id that is unknown, not under the path's parents, or may not be seen: 404, also for
    somebody who could not do it anyway. Seen but not allowed: 403, on record.
    """

    level: ClassVar[str] = "environment"
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.VIEW_ENVIRONMENT,
        "POST": Permission.OPERATE_ENVIRONMENT,
        "PUT": Permission.OPERATE_ENVIRONMENT,
        "PATCH": Permission.OPERATE_ENVIRONMENT,
        "DELETE": Permission.OPERATE_ENVIRONMENT,
    }
    finds: ClassVar[Callable[[Scope, Any], object] | None] = None
    """`finds(scope, id)` raises NotFound when the scope has nothing of that id. Whoever changes what the path names has one."""
    scope: Scope

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        depth = LEVELS.index(self.level)
        ids: list[uuid.UUID] = [kwargs[name] for name in PARENTS[: depth + 1]]
        self.scope = resolve(*ids)
        structlog.contextvars.bind_contextvars(**self.scope.as_dict())
        method = "GET" if request.method in ("HEAD", "OPTIONS") else str(request.method)
        # what is no method here is 405, to those who may look
        permission = self.permissions.get(method) or self.permissions.get("GET", policy.VIEW_OF_LEVEL[self.level])
        decision = policy.can(self.principal, permission, self.scope)
        if isinstance(decision, policy.Denied):
            finds = type(self).finds
            named = [value for name, value in kwargs.items() if name not in PARENTS]
            if decision.visible and finds is not None and named:
                finds(self.scope, named[0])
            policy.refuse(self.principal, permission, self.scope, decision)

    @property
    def environment(self) -> Environment:
        """The environment of the path."""
        return self.scope.here


def no_content() -> Response:
    """204."""
    return Response(status=204)
