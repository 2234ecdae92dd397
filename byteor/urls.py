"""Every path. Rooms bring their own, relative to the API prefix."""

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

_API_ROOMS = [
    room
    for room in ("access", "tenancy", "audit", "jobs", "signing", "approvals", "agents", "pipelines", "deployments")
    if (settings.BASE_DIR / f"apps/{room}/urls.py").exists()
]
_api: list[URLPattern | URLResolver] = [path("", include(f"apps.{room}.urls")) for room in _API_ROOMS]

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/v1/", include(_api)),
    path("v1/", include(_api)),
    path("", include("apps.access.pages")),
    path("admin/", admin.site.urls),
]
if (settings.BASE_DIR / "apps/console/urls.py").exists():
    urlpatterns.insert(2, path("", include("apps.console.urls")))

handler400 = "apps.core.problems.bad_request"
handler403 = "apps.core.problems.permission_denied"
handler404 = "apps.core.problems.page_not_found"
handler500 = "apps.core.problems.server_error"
