"""What changes several rows of one person waits for no transaction that waits for it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, models, transaction
from django.test import Client

from apps.access.models import KnownAddress, Membership, PasswordReset, PersonalToken, User
from apps.access.principals import Principal, person_principal
from apps.access.roles import Role
from apps.access.services import accept_as_new_person, accounts, change_account_state, members, proofs
from apps.access.services.accounts import delete_ended_tokens
from apps.access.services.mail import digest_of
from apps.access.services.resets import delete_ended_resets
from apps.access.services.sign_in import forget_expired
from apps.blobs.purge import purge_node
from apps.console.setup import add_person
from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.db import lock_row
from apps.tenancy.models import Organization
from apps.tenancy.services import create_project
from tests.support import Racer, Tenant, give_role, make_person

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]
LONG_AGO = clock.now() - dt.timedelta(days=60)
BEFORE = LONG_AGO + dt.timedelta(days=1)


@pytest.fixture(autouse=True)
def _row_locks(transactional_db: None) -> None:
    if not connection.features.has_select_for_update:
        pytest.skip("no row locks")


def tokens_of(user: User) -> None:
    for n in range(3):
        PersonalToken.objects.create(user=user, name=f"{n}", public_id=f"{n}", sha256=f"{n}", expires_at=LONG_AGO)


def resets_of(user: User) -> None:
    for n in range(3):
        PasswordReset.objects.create(user=user, sha256=f"{n}", expires_at=LONG_AGO)


def addresses_of(user: User) -> None:
    for n in range(3):
        KnownAddress.objects.create(user=user, address=f"192.0.2.{n}", last_sign_in_at=LONG_AGO)


@pytest.mark.parametrize(
    ("model", "make", "delete"),
    [
        (PersonalToken, tokens_of, lambda: delete_ended_tokens(ended_before=BEFORE)),
        (PasswordReset, resets_of, lambda: delete_ended_resets(ended_before=BEFORE)),
        (KnownAddress, addresses_of, lambda: forget_expired(clock.now())),
    ],
    ids=["tokens", "resets", "addresses"],
)
def test_what_ended_long_ago_is_deleted_while_its_owner_ends_all_credentials(
    tenant: Tenant, model: type[models.Model], make: Callable[[User], None], delete: Callable[[], int]
) -> None:
    bob = tenant.people["bob"]
    make(bob)
    rows: Any = model._default_manager.filter(user=bob)
    first, second, third = rows.order_by("pk").values_list("pk", flat=True)
    # stored in the opposite order: who reads the table meets the third row first, who reads by key the first
    for pk in (second, first):
        rows.filter(pk=pk).update(user=bob)

    def delete_by_key() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SET enable_seqscan = off")
            cursor.execute("SET enable_bitmapscan = off")
        return delete()

    def end() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET enable_indexscan = off")
            cursor.execute("SET enable_bitmapscan = off")
        with transaction.atomic():
            locked = lock_row(User.objects.filter(pk=bob.pk))
            assert locked is not None
            proofs.end_credentials(locked)

    with transaction.atomic():
        assert lock_row(rows.filter(pk=second)) is not None  # both come as far as this row
        chore = Racer(delete_by_key)
        chore.until_it_waits()
        person = Racer(end)
        person.until_it_waits()
    assert person.outcome() is None
    assert isinstance(chore.outcome(), int), chore.outcome()
    assert not rows.filter(pk=third).exists()
    delete()
    assert not rows.exists()


def staff() -> Principal:
    return person_principal(make_person("root", is_superuser=True))


def planted(tenant: Tenant) -> User:
    """A person with an address that is not confirmed, who is a member of the organization that is locked last."""
    last = max(tenant.organization, tenant.other_organization, key=lambda node: node.pk)
    user = make_person("planted", address_proved_at=None, origin_organization_id=last.pk)
    give_role(user, Role.VIEWER, last)
    return user


def take_over(tenant: Tenant, user: User) -> Callable[[], Any]:
    """A command, for which the address of `user` is confirmed in passing."""
    last = max(tenant.organization, tenant.other_organization, key=lambda node: node.pk)
    project = tenant.project if last == tenant.organization else tenant.other_project
    return lambda: add_person(organization=last, project=project, email=user.email, role=Role.VIEWER)


def accept_mailed(tenant: Tenant, user: User) -> Callable[[], Any]:
    last = max(tenant.organization, tenant.other_organization, key=lambda node: node.pk)
    project = tenant.project if last == tenant.organization else tenant.other_project
    Membership.objects.create(
        organization=last,
        project=project,
        email=user.email,
        role=Role.VIEWER,
        mailed_sha256=digest_of("mailed"),
        invitation_expires_at=clock.now() + dt.timedelta(days=1),
    )
    return lambda: accept_as_new_person(token="mailed", encoded="!")


def activate_in_console(tenant: Tenant, user: User) -> Callable[[], Any]:
    User.objects.filter(pk=user.pk).update(is_active=False)
    browser = Client()
    browser.force_login(make_person("second", is_superuser=True))
    fields = {"is_active": "on", "address_proved": "on"}
    return lambda: browser.post(f"/admin/access/user/{user.pk}/change/", fields).status_code


@pytest.mark.parametrize("confirm", [take_over, accept_mailed, activate_in_console])
def test_an_organization_that_is_joined_meanwhile_is_not_locked_out_of_order(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, confirm: Callable[[Tenant, User], Callable[[], Any]]
) -> None:
    user, who = planted(tenant), staff()
    first = min(tenant.organization, tenant.other_organization, key=lambda node: node.pk)
    lock = proofs.lock_organizations_of
    others: list[Racer] = []

    def lock_then_join(*given: Any) -> Any:
        locked = lock(*given)
        if not others:
            Racer(lambda: give_role(user, Role.VIEWER, first)).outcome()
            others.append(Racer(lambda: change_account_state(actor=who, user_id=user.pk, active=True)))
            assert others[0].until_it_waits(), "it holds the first organization and waits for the last"
        return locked

    act = confirm(tenant, user)
    for module in (accounts, members, proofs):
        if hasattr(module, "lock_organizations_of"):
            monkeypatch.setattr(module, "lock_organizations_of", lock_then_join)
    racing = Racer(act)
    found = racing.outcome()
    assert not isinstance(found, BaseException), found
    assert found != 503
    user.refresh_from_db()
    assert user.address_proved_at is not None
    assert isinstance(others[0].outcome(), User), others[0].result


def test_a_person_is_confirmed_while_an_organization_that_was_theirs_is_purged(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purge deletes their memberships in an order of its own: it must not wait for one, and its other side for another."""
    user, who = planted(tenant), staff()
    for name in ("one", "two"):
        project = create_project(actor=SYSTEM_ACTOR, organization=tenant.organization, name=name)
        give_role(user, Role.VIEWER, tenant.organization, project)
    mine = Membership.objects.filter(user=user, project__isnull=False).order_by("pk")
    early, late = mine.values_list("pk", flat=True)
    Membership.objects.filter(pk=early).update(user=user)  # stored after the other one
    Organization.objects.filter(pk=tenant.organization.pk).update(deleted_at=clock.now())
    purges: list[Racer] = []
    end_grant = proofs.end_grant

    def purge_meanwhile(row: Membership, **more: Any) -> None:
        if row.pk == late:
            purges.append(Racer(lambda: purge_node(tenant.organization)))
            purges[0].until_it_waits()
        end_grant(row, **more)

    monkeypatch.setattr(proofs, "end_grant", purge_meanwhile)
    confirmed = Racer(lambda: change_account_state(actor=who, user_id=user.pk, active=True, address_proved=True))
    assert isinstance(confirmed.outcome(), User), confirmed.result
    for purge in purges:
        assert isinstance(purge.outcome(), int), purge.result
    user.refresh_from_db()
    assert user.address_proved_at is not None
