"""Pages of signing in and out, and of accepting an invitation."""

from __future__ import annotations

from django import forms
from django.contrib.auth import login, logout
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.access.services import accept_invitation, invitation_for
from apps.core.errors import ServiceError


def local_next(request: HttpRequest, fallback: str) -> str:
    """The `next` of the request if it stays on this host, else `fallback`."""
    target = request.POST.get("next") or request.GET.get("next") or ""
    hosts = {request.get_host()}
    return target if url_has_allowed_host_and_scheme(target, hosts, require_https=request.is_secure()) else fallback


@never_cache
@require_GET
def login_start(request: HttpRequest) -> HttpResponse:
    """`/auth/login`: to the local sign-in form."""
    target = local_next(request, "")
    query = f"?{urlencode({'next': target})}" if target else ""
    return HttpResponseRedirect(reverse("admin:login") + query)


@never_cache
@require_POST
def logout_now(request: HttpRequest) -> HttpResponse:
    """`/auth/logout`: end the session."""
    logout(request)
    return HttpResponseRedirect(reverse("admin:login"))


class AcceptForm(forms.Form):
    """What accepting takes."""

    name = forms.CharField(max_length=200, required=False, widget=forms.TextInput(attrs={"autocomplete": "name"}))
    password = forms.CharField(
        max_length=1024, strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "new-password"})
    )


@sensitive_post_parameters("password")
@never_cache
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """`/auth/invitations/{token}`: a one-time link. GET shows who invites, POST sets the password and signs in."""
    row = invitation_for(token)
    if row is None:
        return render(request, "access/invitation.html", {"title": "Invitation", "gone": True}, status=404)
    form = AcceptForm(request.POST or None)
    status = 200
    if request.method == "POST":
        status = 400
        if form.is_valid():
            data = form.cleaned_data
            try:
                user = accept_invitation(token=token, password=data["password"], name=data["name"])
            except ServiceError as error:
                status = error.status
                for problem in error.errors:
                    field = problem.pointer.strip("/")
                    form.add_error(field if field in form.fields else None, problem.detail)
                if not error.errors:
                    form.add_error(None, error.detail)
            else:
                login(request, user)
                return HttpResponseRedirect("/")
    response = render(
        request,
        "access/invitation.html",
        {"title": f"Join {row.project or row.organization}", "form": form, "membership": row},
        status=status,
    )
    response["Referrer-Policy"] = "no-referrer"
    return response
