"""Deleting a node leaves no row and no file of it, and touches nothing beside it."""

import datetime as dt
import os
import uuid

import pytest
from django.apps import apps
from django.conf import settings
from django.db import models

from apps.agents.models import Agent, AgentKey
from apps.blobs import purge, services
from apps.blobs.models import StoredBlob
from apps.blobs.store import FolderStore, store
from apps.core import clock
from apps.core.errors import NotFound
from apps.jobs.models import Chore
from apps.pipelines.services import create_draft
from tests.flows.world import SPEC

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "BYTEOR_STORAGE_URL", (tmp_path / "blobs").as_uri())


def fill(tenant, environment, agents=3):
    scope = tenant.scope(environment)
    services.put(environment_id=environment.pk, data=b"bundle of " + environment.name.encode())
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
def test_a_project_goes_with_all_below_it_and_its_sibling_stays(tenant):
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
    monkeypatch.setattr(purge, "MOST_ROWS", 300)
    original, calls = purge._Purge._gone, []

    def breaking(run, model, delete):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise RuntimeError("killed here")
        return original(run, model, delete)

    monkeypatch.setattr(purge._Purge, "_gone", breaking)
    killed = 0
    before = rows_of(tenant.staging)
    while killed < 3:
        try:
            purge.purge_tombstones()
        except RuntimeError:
            killed += 1
        assert rows_of(tenant.staging) <= before
        before = rows_of(tenant.staging)
    monkeypatch.setattr(purge._Purge, "_gone", original)
    purge.purge_tombstones()
    assert not type(tenant.staging).objects.filter(pk=tenant.staging.pk).exists()
    assert list(store().listing()) == []
    assert purge.purge_tombstones() == 0


@pytest.mark.postgres
def test_a_run_of_the_chore_ends_in_time_and_is_called_again_at_once(tenant):
    fill(tenant, tenant.staging, agents=1100)
    assert tenant.caller("alice").delete(tenant.path(tenant.staging)).status_code == 202
    later = clock.now() + dt.timedelta(hours=1)
    Chore.objects.filter(pk="tree_purge").update(next_run_at=later)
    assert purge.purge_tombstones(seconds=-1) == 0
    assert Chore.objects.get(pk="tree_purge").next_run_at < later
    assert type(tenant.staging).objects.filter(pk=tenant.staging.pk).exists()
    assert purge.purge_tombstones() > 1100
    assert not type(tenant.staging).objects.filter(pk=tenant.staging.pk).exists()


def test_transactions_are_kept_short_by_what_the_last_one_took():
    pace = purge._Pace()
    pace.learn(1000, 0.001)
    assert pace.rows == 1500
    for _ in range(20):
        pace.learn(pace.rows, 0.0)
    assert pace.rows == purge.MOST_ROWS
    pace.learn(pace.rows, 10.0)
    assert pace.rows == purge.MOST_ROWS // 4
    for _ in range(20):
        pace.learn(pace.rows, 10.0)
    assert pace.rows == purge.LEAST_ROWS
    pace.learn(3, 0.0)
    assert pace.rows == purge.LEAST_ROWS


def test_rows_are_looked_for_below_as_many_others_as_one_transaction_can_clear():
    pace = purge._Pace(rows=1000, parents=100)
    pace.learn_width(100, 1800)
    assert pace.parents == 50
    pace.learn_width(50, 0)
    assert pace.parents == 200
    for _ in range(20):
        pace.learn_width(pace.parents, 0)
    assert pace.parents == purge.MOST_PARENTS
    pace.learn_width(1, 10**6)
    assert pace.parents == 1


@pytest.mark.postgres
@pytest.mark.parametrize("crowded", [0, 20, 39])
def test_no_transaction_takes_more_rows_than_it_may_however_they_hang(tenant, monkeypatch, crowded):
    monkeypatch.setattr(purge, "MOST_ROWS", 30)
    monkeypatch.setattr(purge, "LEAST_ROWS", 10)
    monkeypatch.setattr(purge, "_Pace", lambda made=purge._Pace: made(rows=20))
    for environment in (tenant.staging, tenant.other_environment):
        agents = Agent.objects.bulk_create(Agent(environment=environment, name=f"a{n}") for n in range(40))
        AgentKey.objects.bulk_create(
            AgentKey(agent=agent, public_id="agt_x", sha256=uuid.uuid4().hex * 2)
            for n, agent in enumerate(agents)
            for _ in range(200 if n == crowded else 1)
        )
    sizes = []
    original = purge._Purge._gone
    monkeypatch.setattr(purge._Purge, "_gone", lambda *given: sizes.append(original(*given)) or sizes[-1])
    assert purge.purge_node(tenant.staging) == sum(sizes) >= 40 + 239
    assert max(sizes) <= 30
    assert set(AgentKey.objects.values_list("agent__environment", flat=True)) == {tenant.other_environment.pk}
    assert AgentKey.objects.count() == 239


def test_the_same_bytes_are_kept_once_and_read_back(tenant):
    one = services.put(environment_id=tenant.dev.pk, data=b"x")
    two = services.put(environment_id=tenant.dev.pk, data=b"x")
    assert one.pk == two.pk
    assert services.read_blob(environment_id=tenant.dev.pk, sha256=one.sha256) == b"x"
    with pytest.raises(NotFound):
        services.read_blob(environment_id=tenant.prod.pk, sha256=one.sha256)
    store().delete(one.key)
    with pytest.raises(NotFound):
        services.open_blob(one)


def test_files_that_no_row_names_go_after_their_grace(tenant):
    kept = services.put(environment_id=tenant.dev.pk, data=b"kept")
    lost = services.put(environment_id=tenant.dev.pk, data=b"lost")
    fresh = services.put(environment_id=tenant.dev.pk, data=b"fresh")
    StoredBlob.objects.exclude(pk=kept.pk).delete()
    folder = store()
    assert isinstance(folder, FolderStore)
    old = (clock.now() - dt.timedelta(days=2)).timestamp()
    for row in (kept, lost):
        os.utime(folder.root / row.key, (old, old))
    assert purge.sweep_orphans(before=clock.now() - dt.timedelta(days=1)) == 1
    assert {key for key, _ in folder.listing()} == {kept.key, fresh.key}
