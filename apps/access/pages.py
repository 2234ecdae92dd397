"""Paths of the pages, relative to the root of the `cloud.*` host."""

from django.urls import path

from apps.access import views

urlpatterns = [
    path("auth/login", views.login_start, name="auth-login"),
    path("auth/logout", views.logout_now, name="auth-logout"),
    path("auth/invitations/<str:token>", views.invitation, name="auth-invitation"),
]
