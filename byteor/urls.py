"""Root URL configuration. Each app has its own URL patterns, relative to the API prefix."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

# agents first, because most requests are heartbeats
_APPS_WITH_API = ("agents", "access", "tenancy", "jobs", "signing", "approvals", "pipelines", "deployments")
_api: list[URLPattern | URLResolver] = [path("", include(f"apps.{app}.urls")) for app in _APPS_WITH_API]

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/v1/", include(_api)),
    path("v1/", include(_api)),
    path("", include("apps.access.pages.urls")),
    path("", include("apps.console.urls")),
    path("admin/", admin.site.urls),
]

handler400 = "apps.api.problems.bad_request"
handler403 = "apps.api.problems.permission_denied"
handler404 = "apps.api.problems.page_not_found"
handler500 = "apps.api.problems.server_error"
