"""The principal of a page's request."""

from __future__ import annotations

from django.http import Http404, HttpRequest

from apps.access.models import User
from apps.access.principals import Principal, person_principal


def principal_of(request: HttpRequest) -> Principal:
    """The signed-in user's principal, cached for the request.

    Raises Http404 without one: the site decides who may see pages.
    """
    user = request.user
    if not isinstance(user, User) or not user.is_active:
        raise Http404
    known: Principal | None = getattr(request, "_principal", None)
    if known is None or known.id != user.pk:
        known = person_principal(user)
        request._principal = known  # type: ignore[attr-defined]
    return known
