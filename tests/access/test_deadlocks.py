"""What changes several rows of one person waits for no transaction that waits for it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, models, transaction

from apps.access.models import KnownAddress, PasswordReset, PersonalToken, User
from apps.access.services.accounts import delete_ended_tokens
from apps.access.services.proofs import end_credentials
from apps.access.services.resets import delete_ended_resets
from apps.access.services.sign_in import forget_expired
from apps.core import clock
from apps.core.db import lock_row
from tests.support import Racer, Tenant

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
            end_credentials(locked)

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
