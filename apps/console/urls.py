"""URL patterns outside the API and the admin."""

from django.urls import path
from django.views.generic import RedirectView

from apps.console import health, install

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index"), name="home"),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.prometheus),
    path("install/byteor-agent.pyz", install.agent_pyz),
    path("install.sh", install.install_sh),
]
