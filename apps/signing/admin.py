"""Admin pages of signing keys: list, rotate, revoke. Private keys are never shown."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from apps.access.policy import require
from apps.access.roles import Permission
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.principal import principal_of
from apps.console.base.ui import add_error_message, status_badge
from apps.core.errors import ServiceError
from apps.runtime.trust import public_key_pem
from apps.signing import registry, services
from apps.signing.models import KeyStatus, SigningKey
from apps.tenancy.scope import Scope

ROTATE, REVOKE = "rotate", "revoke"


@admin.register(SigningKey)
class SigningKeyAdmin(ScopedModelAdmin):
    """Signing keys of the organization."""

    list_display = ("kid", "state", "organization", "not_before", "not_after", "revoked_at")
    list_filter = ("status",)
    list_select_related = ("organization",)
    ordering = ("-id",)
    change_form_template = "admin/signing/signingkey/change_form.html"
    fields = ("organization", "kid", "state", "pem", "not_before", "not_after", "revoked_at", "reason")

    def scope_for_row(self, row: Any) -> Scope:
        return Scope(row.organization)

    def audit_target(self, row: Any) -> str:
        return f"signing_key:{row.kid}"

    @admin.display(description="status", ordering="status")
    def state(self, row: SigningKey) -> str:
        return status_badge(str(row.status))

    @admin.display(description="public key")
    def pem(self, row: SigningKey) -> str:
        return public_key_pem(bytes(row.public_key))

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        acts = [
            path(f"<uuid:object_id>/{word}/", wrap(view), name=f"signing_signingkey_{word}")
            for word, view in ((ROTATE, self.rotate_view), (REVOKE, self.revoke_view))
        ]
        return [*acts, *super().get_urls()]

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        key = self.object_or_404(request, object_id)
        may = self.allows(request, Permission.MANAGE_ORG_MEMBERSHIPS, self.scope_for_row(key))
        context = {
            "key": key,
            "may_rotate": may and key.status == KeyStatus.ACTIVE.value,
            "may_revoke": may and key.status == KeyStatus.RETIRED.value,
            "key_set_version": services.key_set_version(key.organization_id),
        }
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **context})

    def rotate_view(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        """Show a confirmation (GET), or replace this key if it is still the active one (POST)."""
        consequences = [
            "A new key signs from then on. This one is retired: its signatures stay valid.",
            "Agents update their key set by themselves. Running pipelines and rollouts are not affected.",
        ]
        return self._act(request, object_id, ROTATE, consequences)

    def revoke_view(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        """Show a confirmation with the consequences (GET), or revoke the key (POST)."""
        key = self._key_to_change(request, object_id)
        consequences = ["No signature of this key is accepted any more. This can't be undone."]
        for dependent in registry.dependents:
            consequences += dependent.preview_revocation(key.organization_id, key.kid)
        return self._act(request, object_id, REVOKE, consequences)

    def _key_to_change(self, request: HttpRequest, object_id: Any) -> SigningKey:
        key: SigningKey = self.object_or_404(request, str(object_id))
        try:
            require(principal_of(request), Permission.MANAGE_ORG_MEMBERSHIPS, self.scope_for_row(key))
        except ServiceError as error:
            raise PermissionDenied(error.detail) from error
        return key

    def _act(self, request: HttpRequest, object_id: Any, word: str, consequences: list[str]) -> HttpResponse:
        key = self._key_to_change(request, object_id)
        status, reason = 200, request.POST.get("reason", "")[: services.REASON_LENGTH]
        if request.method == "POST":
            try:
                after = self._write(request, key, word, reason)
            except ServiceError as error:
                add_error_message(request, error)
                status = error.status
            else:
                return HttpResponseRedirect(reverse("admin:signing_signingkey_change", args=[after.pk]))
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": f"{word.capitalize()} {key.kid}",
            "key": key,
            "word": word,
            "consequences": consequences,
            "reason": reason,
        }
        return TemplateResponse(request, "admin/signing/signingkey/confirm.html", context, status=status)

    def _write(self, request: HttpRequest, key: SigningKey, word: str, reason: str) -> SigningKey:
        who, scope = principal_of(request), self.scope_for_row(key)
        if word == ROTATE:
            made = services.rotate(actor=who, scope=scope, replacing=key.kid, reason=reason)
            messages.success(request, f"{made.kid} signs from now on.")
            return made
        revoked = services.revoke(actor=who, scope=scope, kid=key.kid, reason=reason)
        messages.success(request, f"{revoked.kid} is revoked.")
        return revoked
