"""Deleting a node deletes all its rows and files, and nothing else."""

import datetime as dt
import os
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
from django.apps import apps
from django.conf import settings
from django.db import models, transaction

from apps.agents.models import Agent, AgentKey
from apps.blobs import orphans, purge, services
from apps.blobs import store as store_module
from apps.blobs.models import FileSweep, StoredBlob, key_of
from apps.blobs.store import FolderStore, store
from apps.core import clock, metrics
from apps.core.errors import NotFound, StorageUnavailable
from apps.jobs.models import Chore
from apps.pipelines.services import create_draft
from apps.tenancy.models import Environment
from apps.tenancy.selectors import lock_environment
from tests.flows.world import SPEC

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "BYTEOR_STORAGE_URL", (tmp_path / "blobs").as_uri())


def content(environment, sha256: str) -> bytes:
    """Read the bytes that the environment has under this digest."""
    with services.open_blob(StoredBlob.objects.get(environment=environment, sha256=sha256)) as stream:
        return stream.read()


def keep(environment, data: bytes) -> StoredBlob:
    """Store `data` and write its row, as a build does."""
    stored = services.store_file(environment_id=environment.pk, data=data)
    with transaction.atomic():
        lock_environment(environment.pk)
        return services.record_file(stored)


def fill(tenant, environment, agents=3):
    scope = tenant.scope(environment)
    keep(environment, b"bundle of " + environment.name.encode())
    create_draft(actor=tenant.principal("alice"), scope=scope, name="d", spec=SPEC)
    Agent.objects.bulk_create(Agent(environment=environment, name=f"a{n}") for n in range(agents))


def rows_of(environment) -> int:
    total = 0
    for model in apps.get_models():
        for field in model._meta.concrete_fields:
            if isinstance(field, models.ForeignKey) and field.related_model is type(environment):
                total += model._base_manager.filter(**{field.name: environment.pk}).count()
    return total


@pytest.mark.postgres
def test_a_project_is_deleted_with_all_below_it_and_its_sibling_stays(tenant):
    fill(tenant, tenant.staging)
    fill(tenant, tenant.other_environment)
    before = rows_of(tenant.other_environment)
    path = f"/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}"
    assert tenant.caller("alice").delete(path).status_code == 204
    assert [rows_of(e) for e in (tenant.dev, tenant.staging, tenant.prod)] == [0, 0, 0]
    assert not type(tenant.staging).objects.filter(project_id=tenant.project.pk).exists()
    assert rows_of(tenant.other_environment) == before
    names = {key.split("/")[0] for key, _ in store().listing()}
    assert names == {str(tenant.other_environment.pk)}


@pytest.mark.postgres
def test_a_large_one_is_left_to_the_chore_and_can_be_interrupted(tenant, monkeypatch):
    fill(tenant, tenant.staging, agents=1100)
    path = tenant.path(tenant.staging)
    alice = tenant.caller("alice")
    assert alice.delete(path).status_code == 202
    assert alice.get(path).status_code == 404
    assert Chore.objects.filter(pk="tree_purge").exists()
    monkeypatch.setattr(purge, "BATCH", 100)
    original, calls = purge._Purge.delete, []

    def breaking(*given):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise KeyboardInterrupt
        original(*given)

    monkeypatch.setattr(purge._Purge, "delete", breaking)
    killed = 0
    before = rows_of(tenant.staging)
    while killed < 3:
        try:
            purge.purge_tombstones()
        except KeyboardInterrupt:
            killed += 1
        assert rows_of(tenant.staging) <= before
        before = rows_of(tenant.staging)
    monkeypatch.setattr(purge._Purge, "delete", original)
    purge.purge_tombstones()
    assert not type(tenant.staging).objects.filter(pk=tenant.staging.pk).exists()
    assert list(store().listing()) == []
    assert purge.purge_tombstones() == 0


@pytest.mark.postgres
def test_a_run_of_the_chore_ends_in_time_and_is_called_again_at_once(tenant):
    fill(tenant, tenant.staging, agents=2500)
    assert tenant.caller("alice").delete(tenant.path(tenant.staging)).status_code == 202
    later = clock.now() + dt.timedelta(hours=1)
    Chore.objects.filter(pk="tree_purge").update(next_run_at=later)
    assert purge.purge_tombstones(seconds=-1) == 0
    assert Chore.objects.get(pk="tree_purge").next_run_at < later
    assert type(tenant.staging).objects.filter(pk=tenant.staging.pk).exists()
    assert purge.purge_tombstones() > 1100
    assert not type(tenant.staging).objects.filter(pk=tenant.staging.pk).exists()


@pytest.mark.postgres
@pytest.mark.parametrize(("beyond", "status"), [(0, 204), (1, 202)])
def test_a_request_deletes_as_many_rows_as_it_may_and_leaves_a_larger_node_to_the_chore(
    tenant, monkeypatch, beyond, status
):
    for environment in (tenant.dev, tenant.staging):
        fill(tenant, environment)
    below = purge.purge_node(tenant.dev) - 1
    monkeypatch.setattr(purge, "INLINE_ROWS", below - beyond)
    assert tenant.caller("alice").delete(tenant.path(tenant.staging)).status_code == status
    assert Environment.objects.filter(pk=tenant.staging.pk).exists() == (status == 202)
    purge.purge_tombstones()
    assert not Environment.objects.filter(pk=tenant.staging.pk).exists()


@pytest.mark.postgres
@pytest.mark.parametrize("crowded", [0, 20, 39])
def test_no_transaction_takes_more_rows_than_it_may_however_they_hang(tenant, monkeypatch, crowded):
    monkeypatch.setattr(purge, "BATCH", 30)
    monkeypatch.setattr(purge, "PARENTS", 25)
    for environment in (tenant.staging, tenant.other_environment):
        agents = Agent.objects.bulk_create(Agent(environment=environment, name=f"a{n}") for n in range(40))
        AgentKey.objects.bulk_create(
            AgentKey(agent=agent, public_id="agt_x", sha256=uuid.uuid4().hex * 2)
            for n, agent in enumerate(agents)
            for _ in range(200 if n == crowded else 1)
        )
    sizes = []
    original = purge._Purge.delete

    def delete(run, *given):
        before = run.deleted
        original(run, *given)
        sizes.append(run.deleted - before)

    monkeypatch.setattr(purge._Purge, "delete", delete)
    assert purge.purge_node(tenant.staging) == sum(sizes) >= 40 + 239
    assert max(sizes) == 30
    assert set(AgentKey.objects.values_list("agent__environment", flat=True)) == {tenant.other_environment.pk}
    assert AgentKey.objects.count() == 239


def test_the_same_bytes_are_kept_once_and_read_back(tenant):
    one = keep(tenant.dev, b"x")
    two = keep(tenant.dev, b"x")
    assert one.pk == two.pk
    assert content(tenant.dev, one.sha256) == b"x"
    assert not StoredBlob.objects.filter(environment=tenant.prod, sha256=one.sha256).exists()
    store().delete(one.key)
    with pytest.raises(NotFound):
        services.open_blob(one)


def test_a_listing_reads_one_folder_at_a_time(tenant, monkeypatch):
    for environment in (tenant.dev, tenant.staging):
        keep(environment, b"x")
    read, walk = [], os.walk

    def walking(top):
        for folder in walk(top):
            read.append(folder[0])
            yield folder

    monkeypatch.setattr("apps.blobs.store.os.walk", walking)
    listing = store().listing()
    next(listing)
    before = len(read)
    assert len(list(listing)) == 1
    assert before < len(read)


def test_files_that_no_row_names_go_after_their_grace(tenant):
    kept = keep(tenant.dev, b"kept")
    lost = keep(tenant.dev, b"lost")
    fresh = keep(tenant.dev, b"fresh")
    StoredBlob.objects.exclude(pk=kept.pk).delete()
    folder = store()
    assert isinstance(folder, FolderStore)
    old = (clock.now() - dt.timedelta(days=2)).timestamp()
    for row in (kept, lost):
        os.utime(folder.root / row.key, (old, old))
    assert orphans.sweep_orphans(before=clock.now() - dt.timedelta(days=1)) == 1
    assert {key for key, _ in folder.listing()} == {kept.key, fresh.key}


def old(blob: StoredBlob) -> None:
    """The file was written two days ago."""
    folder = store()
    assert isinstance(folder, FolderStore)
    when = (clock.now() - dt.timedelta(days=2)).timestamp()
    os.utime(folder.root / blob.key, (when, when))


def sweep() -> int:
    return orphans.sweep_orphans(before=clock.now() - dt.timedelta(days=1))


def orphan(tenant, data: bytes) -> StoredBlob:
    """An old file whose row was deleted."""
    row = keep(tenant.dev, data)
    old(row)
    StoredBlob.objects.filter(pk=row.pk).delete()
    return row


@pytest.mark.parametrize("moment", ["before it is deleted", "after it is deleted"])
def test_bytes_that_are_uploaded_again_while_they_are_swept_are_not_recorded_without_a_file(
    tenant, monkeypatch, moment
):
    row = orphan(tenant, b"again")
    uploaded = []
    original = FolderStore.delete

    def delete(folder, key):
        if moment == "after it is deleted":
            original(folder, key)
            with pytest.raises(StorageUnavailable, match="being deleted"):
                services.store_file(environment_id=tenant.dev.pk, data=b"again")
            return
        with transaction.atomic(), pytest.raises(StorageUnavailable, match=r"being deleted|deleted meanwhile"):
            services.record_file(uploaded[0])
        original(folder, key)

    uploaded.append(services.store_file(environment_id=tenant.dev.pk, data=b"again"))
    old(row)
    monkeypatch.setattr(FolderStore, "delete", delete)
    assert sweep() == 1
    with transaction.atomic(), pytest.raises(StorageUnavailable, match="deleted meanwhile"):
        services.record_file(uploaded[0])
    monkeypatch.setattr(FolderStore, "delete", original)
    again = keep(tenant.dev, b"again")
    assert content(tenant.dev, again.sha256) == b"again"
    assert sweep() == 0


def test_a_row_that_is_written_before_the_sweep_gets_there_keeps_its_file(tenant, monkeypatch):
    row = orphan(tenant, b"kept after all")
    original = orphans._unnamed

    def unnamed(keys):
        found = original(keys)
        keep(tenant.dev, b"kept after all")
        return found

    monkeypatch.setattr(orphans, "_unnamed", unnamed)
    assert sweep() == 0
    assert content(tenant.dev, row.sha256) == b"kept after all"
    assert not FileSweep.objects.exists()


def test_a_sweep_that_was_killed_is_finished_by_the_next(tenant, monkeypatch):
    row = orphan(tenant, b"lost")

    def killed(folder, key):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep()
    assert FileSweep.objects.get().finished_at is None
    assert sweep() == 1
    assert row.key not in {key for key, _ in store().listing()}
    assert keep(tenant.dev, b"lost").sha256 == row.sha256


def test_one_file_that_cant_be_swept_holds_up_no_other(tenant, monkeypatch):
    rows = sorted((orphan(tenant, bytes([n])) for n in range(3)), key=lambda row: row.key)
    original = FolderStore.delete

    def delete(folder, key):
        if key == rows[0].key:
            raise StorageUnavailable("delete: 403 AccessDenied")
        original(folder, key)

    monkeypatch.setattr(FolderStore, "delete", delete)
    assert sweep() == 2
    assert {key for key, _ in store().listing()} == {rows[0].key}


def away(*given, **options):
    raise StorageUnavailable("delete: ConnectTimeoutError")


@pytest.mark.postgres
def test_a_deletion_while_the_store_is_away_is_202_and_finished_later(tenant, monkeypatch):
    fill(tenant, tenant.staging)
    alice, path = tenant.caller("alice"), tenant.path(tenant.staging)
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "delete_prefix", away)
        assert alice.delete(path).status_code == 202
        assert alice.get(path).status_code == alice.delete(path).status_code == 404
        assert Environment.objects.filter(pk=tenant.staging.pk).exists()
    assert Chore.objects.filter(pk="tree_purge", next_run_at__lte=clock.now()).exists()
    purge.purge_tombstones()
    assert not Environment.objects.filter(pk=tenant.staging.pk).exists()
    assert not [key for key, _ in store().listing() if key.startswith(str(tenant.staging.pk))]


@pytest.mark.postgres
def test_a_deleting_request_stops_after_a_few_seconds_and_the_chore_finishes(tenant, monkeypatch):
    fill(tenant, tenant.staging)
    for number in range(20):
        store().put(key_of(str(tenant.staging.pk), f"{number:064x}"), b"a file that no row names")
    unlink, deleted = Path.unlink, []

    def slow(path, missing_ok=False):
        if str(tenant.staging.pk) in str(path):
            deleted.append(path)
        unlink(path, missing_ok=missing_ok)

    # each file takes a second of this clock
    clock_of_files = SimpleNamespace(monotonic=lambda: float(len(deleted)))

    alice, path = tenant.caller("alice"), tenant.path(tenant.staging)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", slow)
        for module in (purge, store_module):
            patch.setattr(module, "time", clock_of_files)
        assert alice.delete(path).status_code == 202
    assert len(deleted) == purge.INLINE_SECONDS
    assert alice.get(path).status_code == 404
    assert Environment.objects.filter(pk=tenant.staging.pk).exists()
    assert Chore.objects.filter(pk="tree_purge", next_run_at__lte=clock.now()).exists()
    purge.purge_tombstones()
    assert not Environment.objects.filter(pk=tenant.staging.pk).exists()
    assert not [key for key, _ in store().listing() if key.startswith(str(tenant.staging.pk))]


@pytest.mark.postgres
def test_one_tenants_deletion_that_fails_holds_up_no_other(tenant, monkeypatch):
    poisoned, other = sorted((tenant.staging, tenant.other_environment), key=lambda e: e.pk)
    fill(tenant, tenant.staging)
    original = FolderStore.delete_prefix

    def delete_prefix(folder, prefix, *, until=None):
        if prefix == str(poisoned.pk):
            away()
        return original(folder, prefix, until=until)

    monkeypatch.setattr(FolderStore, "delete_prefix", delete_prefix)
    Environment.objects.filter(pk__in=[poisoned.pk, other.pk]).update(deleted_at=clock.now())
    purge.purge_tombstones()
    assert list(Environment.objects.filter(pk__in=[poisoned.pk, other.pk])) == [poisoned]


def test_a_missing_and_a_corrupt_file_are_logged_errors(tenant):
    row = keep(tenant.dev, b"as it was stored")
    folder = store()
    assert isinstance(folder, FolderStore)
    (folder.root / row.key).write_bytes(b"as it was stoned")
    with structlog.testing.capture_logs() as logged, pytest.raises(StorageUnavailable):
        services.open_blob(row)
    store().delete(row.key)
    with structlog.testing.capture_logs() as more, pytest.raises(NotFound):
        services.open_blob(row)
    metrics.forget()
    assert b'byteor_storage_bad_files{kind="lost"} 0' not in metrics.exposition()
    named = {"sha256": row.sha256, "environment_id": str(tenant.dev.pk), "key": row.key, "log_level": "error"}
    assert [named | {"event": "stored file corrupt"}] == logged
    assert [named | {"event": "stored file missing"}] == more
