"""Every path. Rooms bring their own, relative to the API prefix."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

# agents first: their heartbeats are most of what is asked for
_API_ROOMS = ("agents", "access", "tenancy", "jobs", "signing", "approvals", "pipelines", "deployments")
_api: list[URLPattern | URLResolver] = [path("", include(f"apps.{room}.urls")) for room in _API_ROOMS]

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/v1/", include(_api)),
    path("v1/", include(_api)),
    path("", include("apps.access.pages")),
    path("", include("apps.console.urls")),
    path("admin/", admin.site.urls),
]

handler400 = "apps.core.problems.bad_request"
handler403 = "apps.core.problems.permission_denied"
handler404 = "apps.core.problems.page_not_found"
handler500 = "apps.core.problems.server_error"
