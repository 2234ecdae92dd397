"""The sweep of files forgets its finished rows while the environment that they belong to is purged."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection, transaction

from apps.blobs import orphans, purge
from apps.blobs.models import FileSweep
from apps.core import clock
from apps.core.db import lock_row
from apps.tenancy.models import Environment
from tests.support import Racer, Tenant

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def test_finished_sweeps_and_their_environment_are_deleted_at_once(
    tenant: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not connection.features.has_select_for_update:
        pytest.skip("no row locks")
    monkeypatch.setattr(settings, "BYTEOR_STORAGE_URL", (tmp_path / "blobs").as_uri())
    now = clock.now()
    rows = [FileSweep.objects.create(environment=tenant.dev, sha256=f"{n}", finished_at=now) for n in (3, 2, 1)]
    Environment.objects.filter(pk=tenant.dev.pk).update(deleted_at=now)

    def purge_by_digest() -> int:
        # by the index over environment and digest: in the order opposite to that in which they are stored
        with connection.cursor() as cursor:
            cursor.execute("SET enable_seqscan = off")
            cursor.execute("SET enable_bitmapscan = off")
        return purge.purge_node(tenant.dev)

    with transaction.atomic():
        assert lock_row(FileSweep.objects.filter(pk=rows[1].pk)) is not None  # both come as far as this row
        sweep = Racer(lambda: orphans.sweep_orphans(before=now + dt.timedelta(seconds=1)))
        sweep.until_it_waits()
        purging = Racer(purge_by_digest)
        purging.until_it_waits()
    assert sweep.outcome() == 0
    assert isinstance(purging.outcome(), int), purging.outcome()
    assert not Environment.objects.filter(pk=tenant.dev.pk).exists()
