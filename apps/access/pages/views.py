"""Pages of sign-in and sign-out, invitations, and password resets."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.access.models import User
from apps.access.pages.browsers import remember, sign_in_origin
from apps.access.pages.forms import AcceptForm, AddressForm, SetPasswordForm
from apps.access.services import (
    accept_as_new_person,
    invitation_for,
    invitations_of,
    join,
    join_without_link,
    open_reset,
    request_password_reset,
    reset_password,
)
from apps.access.services.accounts import checked_password, hash_password
from apps.access.services.mail import mail_is_sent
from apps.access.services.members import OpenInvitation, why_not_join
from apps.access.services.sign_in import begin_session, end_session
from apps.core import context
from apps.core.errors import NotFound, ServiceError
from apps.core.ids import parse_id
from apps.limits.services import check_link_form

INVITATIONS_PER_PAGE = 50


def local_next(request: HttpRequest, fallback: str) -> str:
    """Return the `next` parameter if it stays on this host, else `fallback`."""
    target = request.POST.get("next") or request.GET.get("next") or ""
    hosts = {request.get_host()}
    return target if url_has_allowed_host_and_scheme(target, hosts, require_https=request.is_secure()) else fallback


@never_cache
@require_GET
def login_start(request: HttpRequest) -> HttpResponse:
    """`/auth/login`: redirect to the local sign-in form."""
    target = local_next(request, "")
    query = f"?{urlencode({'next': target})}" if target else ""
    return HttpResponseRedirect(reverse("admin:login") + query)


@never_cache
@require_POST
def logout_now(request: HttpRequest) -> HttpResponse:
    """`/auth/logout`: end the session."""
    end_session(request)
    return HttpResponseRedirect(reverse("admin:login"))


def _sign_in_url(target: str) -> str:
    return f"{reverse('admin:login')}?{urlencode({'next': target})}"


def _signed_in(request: HttpRequest) -> User | None:
    user = request.user
    return user if isinstance(user, User) and user.is_active else None


def _page(request: HttpRequest, template: str, page: dict[str, Any], error: ServiceError | None = None) -> HttpResponse:
    """Render a page that contains or follows a secret link.

    The `same-origin` referrer policy keeps its address from other sites. With `no-referrer`, browsers would send the
    form with `Origin: null`, which the CSRF check refuses.
    """
    status = error.status if error is not None else page.pop("status", 200)
    response = render(request, template, {**page, "refusal": error}, status=status)
    if error is not None:
        for name, value in error.headers.items():
            response[name] = value
    return response


def _new_password(request: HttpRequest, form: SetPasswordForm, user: User) -> str | None:
    """Return the hash of a valid form's password, after counting the attempt; or None, with the form's errors set.

    Hashes outside any transaction and before any lookup, so that a known and an unknown address take the same time.
    Raises TooManyRequests and Unavailable.
    """
    check_link_form(context.current().ip)
    if not form.is_valid():
        return None
    try:
        password = checked_password(form.cleaned_data["password"], user)
    except ServiceError as error:
        for problem in error.errors:
            form.add_error("password", problem.detail)
        return None
    return hash_password(password)


@sensitive_post_parameters("password")
@never_cache
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """`/auth/invitations/{token}`: the page of a one-time invitation link.

    A user who is signed in with the invited address joins with a POST. Others can sign in first, or create an account
    with a password. Both are always offered, so that the page does not reveal whether the address has an account.
    """
    found = invitation_for(token)
    if found is None:
        return _page(request, "access/invitation.html", {"title": "Invitation", "expired": True, "status": 404})
    user = _signed_in(request)
    page: dict[str, Any] = {
        "title": f"Join {found.membership.project or found.membership.organization}",
        "membership": found.membership,
        "sign_in_url": _sign_in_url(request.path),
    }
    if user is not None:
        refusal = why_not_join(user, found)
        if refusal is None or refusal.code != "password_needed":
            return _join(request, token, user, page, refusal)
    return _accept(request, token, found, page)


def _join(
    request: HttpRequest, token: str, user: User, page: dict[str, Any], refusal: ServiceError | None
) -> HttpResponse:
    page["mode"] = "join" if refusal is None else "stop"
    page["stop"] = refusal
    if request.method != "POST":
        return _page(request, "access/invitation.html", page)
    try:
        row = join(user=user, token=token)
    except NotFound:
        return _page(request, "access/invitation.html", {"title": "Invitation", "expired": True, "status": 404})
    except ServiceError as error:
        return _page(request, "access/invitation.html", {**page, "mode": "stop", "stop": error}, error)
    messages.success(request, f"You joined {row.project or row.organization}.")
    return HttpResponseRedirect("/")


def _accept(request: HttpRequest, token: str, found: OpenInvitation, page: dict[str, Any]) -> HttpResponse:
    form = AcceptForm(request.POST or None)
    page |= {"mode": "accept", "form": form}
    if request.method != "POST":
        return _page(request, "access/invitation.html", page)
    try:
        encoded = _new_password(request, form, User(email=found.membership.email))
        if encoded is None:
            return _page(request, "access/invitation.html", {**page, "status": 400})
        user = accept_as_new_person(token=token, encoded=encoded, name=form.cleaned_data["name"])
    except NotFound:
        return _page(request, "access/invitation.html", {"title": "Invitation", "expired": True, "status": 404})
    except ServiceError as error:
        return _page(request, "access/invitation.html", page, error)
    begin_session(request, user, origin=sign_in_origin(request), by="invitation")
    response = HttpResponseRedirect("/")
    remember(request, response, user)
    return response


@never_cache
@require_http_methods(["GET", "POST"])
def my_invitations(request: HttpRequest) -> HttpResponse:
    """`/auth/invitations`: the open invitations to the signed-in user's address, 50 a page (`?page=`). A POST joins
    one."""
    user = _signed_in(request)
    if user is None:
        return HttpResponseRedirect(_sign_in_url(request.path))
    shown = Paginator(invitations_of(user), INVITATIONS_PER_PAGE).get_page(request.GET.get("page"))
    page = {"title": "Your invitations", "invitations": shown}
    if request.method != "POST":
        return _page(request, "access/invitations.html", page)
    try:
        which = parse_id(request.POST.get("invitation", ""))
        if which is None:
            raise NotFound()
        row = join_without_link(user=user, membership_id=which)
    except ServiceError as error:
        return _page(request, "access/invitations.html", page, error)
    messages.success(request, f"You joined {row.project or row.organization}.")
    return HttpResponseRedirect("/")


@never_cache
@require_http_methods(["GET", "POST"])
def forgotten_password(request: HttpRequest) -> HttpResponse:
    """`/auth/reset`: request a mailed link. Response and time are the same for every address."""
    form = AddressForm(request.POST or None)
    page: dict[str, Any] = {"title": "Forgotten password", "form": form, "mail_is_sent": mail_is_sent()}
    if request.method != "POST" or not page["mail_is_sent"]:
        return _page(request, "access/forgotten_password.html", page)
    try:
        check_link_form(context.current().ip)
        if not form.is_valid():
            return _page(request, "access/forgotten_password.html", {**page, "status": 400})
        request_password_reset(email=form.cleaned_data["email"])
    except ServiceError as error:
        return _page(request, "access/forgotten_password.html", page, error)
    return _page(request, "access/forgotten_password.html", {**page, "requested": True})


@sensitive_post_parameters("password")
@never_cache
@require_http_methods(["GET", "POST"])
def set_password(request: HttpRequest, token: str) -> HttpResponse:
    """`/auth/reset/{token}`: the page of a one-time link. A POST sets the password; the user then signs in with it."""
    expired = {"title": "New password", "expired": True, "status": 404}
    found = open_reset(token)
    if found is None:
        return _page(request, "access/set_password.html", expired)
    form = SetPasswordForm(request.POST or None)
    page: dict[str, Any] = {"title": "New password", "form": form, "email": found.user.email}
    if request.method != "POST":
        return _page(request, "access/set_password.html", page)
    try:
        encoded = _new_password(request, form, found.user)
        if encoded is None:
            return _page(request, "access/set_password.html", {**page, "status": 400})
        reset_password(token=token, encoded=encoded)
    except NotFound:
        return _page(request, "access/set_password.html", expired)
    except ServiceError as error:
        return _page(request, "access/set_password.html", page, error)
    messages.success(request, "Your password is set. Sign in with it.")
    return HttpResponseRedirect(reverse("admin:login"))
