"""The admin site: who gets in, and how they sign in."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.auth.forms import AuthenticationForm
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from apps.access.authentication import principal_of
from apps.access.models import User
from apps.access.selectors import active_memberships
from apps.approvals.models import Approval, ApprovalStatus
from apps.approvals.selectors import waiting_for
from apps.core import context
from apps.core.errors import TooManyRequests, Unavailable
from apps.deployments.models import Deployment
from apps.limits.services import check_login, login_succeeded


class ConsoleSite(AdminSite):
    """The console. `is_staff` means nothing: an active person with a role, or platform staff, gets in."""

    site_header = "ByteOr Cloud"
    site_title = "ByteOr Cloud"
    index_title = "Console"
    login_form = AuthenticationForm
    enable_nav_sidebar = False

    def has_permission(self, request: HttpRequest) -> bool:
        user = request.user
        if not isinstance(user, User) or not user.is_active:
            return False
        return user.is_superuser or active_memberships(user.pk).exists()

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """The inbox: what waits for me, and what is under way, above the rooms."""
        # the rooms' admins register with this very site, so it can't import what imports them
        from apps.console.review import review

        who = principal_of(request)
        visible = Deployment.objects.visible_to(who).select_related("environment__project")
        inbox = {
            "waiting": [review(row, who) for row in waiting_for(who).order_by("expires_at")[:50]],
            "mine": Approval.objects.visible_to(who)
            .select_related("environment")
            .filter(requested_by=who.id, status=ApprovalStatus.PENDING.value)
            .order_by("-pk")[:20],
            "under_way": visible.filter(status__in=["approved", "building", "deploying", "rolling_back"]).order_by(
                "-pk"
            )[:20],
            "recent": visible.exclude(status="pending_approval").order_by("-pk")[:10],
        }
        return super().index(request, {**(extra_context or {}), **inbox, "title": "Inbox"})

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The sign-in form, limited per address and account (429)."""
        if request.method != "POST":
            return super().login(request, extra_context)
        address, account = context.current().ip, str(request.POST.get("username", ""))
        try:
            check_login(address=address, account=account)
        except (TooManyRequests, Unavailable) as error:
            form = AuthenticationForm(request)
            response = super().login(
                _as_get(request), {**(extra_context or {}), "form": form, "too_many": error.detail}
            )
            response.status_code = error.status
            response["Retry-After"] = error.headers["Retry-After"]
            return response
        response = super().login(request, extra_context)
        if response.status_code == 302:
            login_succeeded(address=address, account=account)
        return response


def _as_get(request: HttpRequest) -> HttpRequest:
    request.method = "GET"
    return request
