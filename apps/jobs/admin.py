"""Jobs, and dead letters to retry."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse

from apps.access.policy import require
from apps.access.roles import Permission
from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.principal import principal_of
from apps.console.base.ui import status_badge
from apps.jobs.models import Job
from apps.jobs.services import retry_dead_letter


@admin.register(Job)
class JobAdmin(ScopedModelAdmin):
    """Background jobs."""

    list_display = ("type", "state", "where", "attempts", "error_class", "created_at")
    list_filter = ("status", "type", *SCOPE_FILTERS)
    ordering = ("-id",)
    exclude = ("lease_token", "payload")
    change_form_template = "admin/jobs/job/change_form.html"

    @admin.display(description="status", ordering="status")
    def state(self, row: Job) -> str:
        return status_badge(str(row.status))

    def get_urls(self) -> list[URLPattern]:
        retry = path("<uuid:object_id>/retry/", self.admin_site.admin_view(self.retry_view), name="jobs_job_retry")
        return [retry, *super().get_urls()]

    def retry_view(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        """POST: queue a dead job again."""
        job = self.object_or_404(request, str(object_id))
        if request.method == "POST":
            who = principal_of(request)

            def write() -> None:
                require(who, Permission.OPERATE_ENVIRONMENT, self.scope_for_row(job))
                retry_dead_letter(actor=who, job=job)

            self.run(request, write, "It is queued again.")
        return HttpResponseRedirect(reverse("admin:jobs_job_change", args=[job.pk]))

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        job = self.object_or_404(request, object_id)
        rows = job.attempt_rows.order_by("pk")
        return super().change_view(
            request, object_id, form_url, {**(extra_context or {}), "attempt_rows": rows, "job": job}
        )
