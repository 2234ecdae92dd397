"""Signing keys in the console: which buttons each role sees, the confirmation pages, and the actions."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from apps.access.models import User
from apps.audit.models import AuditEvent
from apps.signing.models import SigningKey
from tests.deployments.world import World
from tests.support import Tenant, make_person

pytestmark = pytest.mark.django_db


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def url(word: str, key: SigningKey) -> str:
    return reverse(f"admin:signing_signingkey_{word}", args=[key.pk])


def only_key(tenant: Tenant) -> SigningKey:
    return SigningKey.objects.get(organization=tenant.organization)


def test_an_admin_rotates_and_revokes_after_reading_the_consequences(tenant: Tenant) -> None:
    world = World(tenant, tenant.dev)
    world.enroll(1)
    world.roll_out()
    first, page = only_key(tenant), browser(tenant.people["alice"])
    shown = page.get(url("change", first)).content.decode()
    assert "Rotate: retire this key" in shown
    assert "Revoke this key" not in shown
    assert "A new key signs from then on" in page.get(url("rotate", first)).content.decode()
    assert SigningKey.objects.filter(organization=tenant.organization).count() == 1, "a GET changes nothing"
    answer = page.post(url("rotate", first), {"reason": "yearly"}, follow=True)
    assert "signs from now on" in answer.content.decode()
    assert AuditEvent.objects.get(action="signing_key.rotated").details["reason"] == "yearly"
    shown = page.get(url("revoke", first)).content.decode()
    assert "1 deployment is running, will keep running" in shown
    assert "orders v1 in Orders / dev" in shown
    answer = page.post(url("revoke", first), {"reason": "<b>leaked</b>"}, follow=True)
    text = answer.content.decode()
    assert "is revoked" in text
    assert "&lt;b&gt;leaked&lt;/b&gt;" in text
    first.refresh_from_db()
    assert first.status == "revoked"
    deployment = reverse("admin:deployments_deployment_changelist")
    assert "key revoked" in page.get(f"{deployment}?needs_redeployment=true").content.decode()


def test_a_second_click_on_rotate_makes_no_second_key(tenant: Tenant) -> None:
    first, page = only_key(tenant), browser(tenant.people["alice"])
    assert page.post(url("rotate", first), {}).status_code == 302
    answer = page.post(url("rotate", first), {})
    assert answer.status_code == 409
    assert "is already the active key" in answer.content.decode()
    assert SigningKey.objects.filter(organization=tenant.organization).count() == 2


def test_the_last_active_key_is_not_revoked_by_this_way_either(tenant: Tenant) -> None:
    first, page = only_key(tenant), browser(tenant.people["alice"])
    answer = page.post(url("revoke", first), {"reason": "kept"})
    assert answer.status_code == 409
    assert "rotate first" in answer.content.decode()
    assert ">kept</textarea>" in answer.content.decode()


def test_others_read_and_outsiders_do_not_even_that(tenant: Tenant) -> None:
    first = only_key(tenant)
    for who in ("bob", "vera"):
        page = browser(tenant.people[who])
        shown = page.get(url("change", first)).content.decode()
        assert "BEGIN PUBLIC KEY" in shown
        assert "Only an organization admin" in shown
        for word in ("rotate", "revoke"):
            assert page.get(url(word, first)).status_code == 403
            assert page.post(url(word, first), {}).status_code == 403
    staff = browser(make_person("staff", is_superuser=True))
    assert staff.get(url("change", first)).status_code == 200
    assert staff.post(url("rotate", first), {}).status_code == 403
    outsider = browser(tenant.people["charlie"])
    for word in ("change", "rotate", "revoke"):
        assert outsider.get(url(word, first)).status_code == 404
        assert outsider.post(url(word, first), {}).status_code == 404
    assert SigningKey.objects.filter(organization=tenant.organization).count() == 1
