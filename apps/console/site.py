"""The admin site: access to the console, and the inbox."""

from __future__ import annotations

from typing import Any, cast

from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.functional import SimpleLazyObject

from apps.access.models import User
from apps.access.pages.site import SignInSite
from apps.approvals.models import Approval, ApprovalStatus
from apps.audit import services as audit
from apps.console.base.principal import principal_of
from apps.core import clock
from apps.deployments.models import Deployment

UNUSED = ("view_on_site", "autocomplete")
"""Names of Django's URLs that the console does not have. Views by platform staff would not be audited there."""


class ConsoleSite(SignInSite):
    """The console's admin site. Active users with a role and platform staff have access; `is_staff` is not used."""

    site_header = "ByteOr Cloud"
    site_title = "ByteOr Cloud"
    index_title = "Console"
    enable_nav_sidebar = False
    site_url = None

    def get_urls(self) -> list[Any]:
        """Django's URLs without those that no page uses: the redirect to an object's public page, and autocomplete."""
        return [each for each in super().get_urls() if getattr(each, "name", None) not in UNUSED]

    def has_permission(self, request: HttpRequest) -> bool:
        user = request.user
        if not isinstance(user, User) or not user.is_active:
            return False
        return user.is_superuser or bool(principal_of(request).roles)

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """The apps that the user may see. Lazy, because Django requests it for every page's context."""
        known: dict[str | None, list[Any]] = request.__dict__.setdefault("_app_lists", {})
        if app_label not in known:
            gather = super().get_app_list
            known[app_label] = cast(list[Any], SimpleLazyObject(lambda: gather(request, app_label)))
        return known[app_label]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the inbox: approvals to decide and deployments in progress, above the list of apps.

        To platform staff it shows the deployments of all tenants, so their view is audited as that of a list is.
        """
        # the apps' admins register with this site; a module-level import would be circular
        from apps.console.inbox import inbox_of

        who = principal_of(request)
        if who.is_superuser:
            audit.record_view(organization_id=None, actor=who.ref, target="inbox")
        visible = Deployment.objects.visible_to(who).select_related("environment__project")
        found = inbox_of(who)
        inbox = {
            "waiting": found.cards,
            "waiting_more": found.more,
            "now_is": clock.now(),
            "waiting_total": found.total,
            "mine": Approval.objects.visible_to(who)
            .select_related("environment__project")
            .filter(requested_by=who.acts_for, status=ApprovalStatus.PENDING.value)
            .order_by("-pk")[:20],
            "in_progress": visible.filter(status__in=["approved", "building", "deploying", "rolling_back"]).order_by(
                "-pk"
            )[:20],
            "recent": visible.exclude(status="pending_approval").order_by("-pk")[:10],
        }
        return super().index(request, {**(extra_context or {}), **inbox, "title": "Inbox"})
