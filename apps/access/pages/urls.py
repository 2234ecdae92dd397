"""Paths of the pages, relative to the root of the `cloud.*` host."""

from django.urls import path

from apps.access.pages import views

urlpatterns = [
    path("auth/login", views.login_start, name="auth-login"),
    path("auth/logout", views.logout_now, name="auth-logout"),
    path("auth/invitations", views.my_invitations, name="auth-invitations"),
    path("auth/reset", views.forgotten_password, name="admin_password_reset"),
    path("auth/reset/<str:token>", views.set_password, name="auth-reset-password"),
    path("auth/invitations/<str:token>", views.invitation, name="auth-invitation"),
]
