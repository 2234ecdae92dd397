"""Sign-in, sign-out and password change of an admin site."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.views import LoginView, PasswordChangeView
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from apps.access.models import Membership, User
from apps.access.pages.browsers import remember, sign_in_origin
from apps.access.pages.forms import ChangePasswordForm, SignInForm
from apps.access.services import invitations_of
from apps.access.services.sign_in import begin_session, end_session
from apps.core.errors import Unauthenticated


def _with_refusal(response: HttpResponse, form: SignInForm | ChangePasswordForm) -> HttpResponse:
    """Return 429 or 503 with `Retry-After` if the form was refused for that reason."""
    if form.refusal is not None:
        response.status_code = form.refusal.status
        for name, value in form.refusal.headers.items():
            response[name] = value
    return response


class SignInView(LoginView):
    """The sign-in form."""

    authentication_form = SignInForm

    def form_valid(self, form: Any) -> HttpResponse:
        user: User = form.get_user()
        origin = sign_in_origin(self.request)
        begin_session(self.request, user, origin=origin, by="password")
        response = HttpResponseRedirect(self._after(user))
        remember(self.request, response, user)
        return response

    def _after(self, user: User) -> str:
        """Return the page to show next: the invitations, for a user who has only these."""
        nothing_else = not user.is_superuser and not Membership.objects.active_of(user.pk).exists()
        if not self.get_redirect_url().startswith("/auth/") and nothing_else and invitations_of(user).exists():
            return reverse("auth-invitations")
        return self.get_success_url()

    def form_invalid(self, form: Any) -> HttpResponse:
        return _with_refusal(super().form_invalid(form), form)


class ChangePasswordView(PasswordChangeView):
    """Password change; this browser stays signed in."""

    form_class = ChangePasswordForm

    def get_form_kwargs(self) -> dict[str, Any]:
        return {**super().get_form_kwargs(), "origin": sign_in_origin(self.request)}

    def form_valid(self, form: Any) -> HttpResponse:
        try:
            return super().form_valid(form)
        except Unauthenticated:
            # the account was reset while the password was being hashed
            return HttpResponseRedirect(reverse("admin:login"))

    def form_invalid(self, form: Any) -> HttpResponse:
        return _with_refusal(super().form_invalid(form), form)


class SignInSite(AdminSite):
    """An admin site whose sign-in, sign-out and password change use the sign-in service."""

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Sign-in form, limited per address and account (429)."""
        if request.method == "GET" and self.has_permission(request):
            return HttpResponseRedirect(reverse("admin:index", current_app=self.name))
        context = {
            **self.each_context(request),
            "title": "Sign in",
            "subtitle": None,
            "app_path": request.get_full_path(),
            "username": request.user.get_username(),
        }
        if REDIRECT_FIELD_NAME not in request.GET and REDIRECT_FIELD_NAME not in request.POST:
            context[REDIRECT_FIELD_NAME] = reverse("admin:index", current_app=self.name)
        context.update(extra_context or {})
        request.current_app = self.name
        view = SignInView.as_view(extra_context=context, template_name=self.login_template or "admin/login.html")
        return view(request)

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """End the session and record it."""
        if request.method == "POST":
            end_session(request)
        return super().logout(request, extra_context)

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Change one's password."""
        request.current_app = self.name
        view = ChangePasswordView.as_view(
            success_url=reverse("admin:password_change_done", current_app=self.name),
            extra_context={**self.each_context(request), **(extra_context or {})},
        )
        return view(request)
