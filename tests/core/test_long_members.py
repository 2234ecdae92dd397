"""Long members of list items are included on request only; list filters."""

from __future__ import annotations

import uuid

import pytest

from apps.agents.models import Agent
from apps.core.actors import SYSTEM_ACTOR
from apps.deployments.services import create_bundle, request_deployment
from apps.deployments.services.requests import Selector
from apps.pipelines.services import create_draft, promote_draft
from apps.runtime.spec import compile_spec
from apps.tenancy import services as tenancy
from tests.flows.world import SPEC, config
from tests.support import Tenant, in_threads

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]


def test_a_list_of_drafts_has_no_specs_unless_asked(tenant: Tenant) -> None:
    bob, path = tenant.caller("bob"), f"{tenant.path()}/drafts"
    for n in range(3):
        assert bob.post(path, {"name": f"draft-{n}", "spec": SPEC}).status_code == 201
    short = bob.get(path).json()["results"]
    assert len(short) == 3
    assert not any({"spec", "diagnostics"} & set(row) for row in short)
    assert bob.get(f"{path}?include=spec&limit=20").json()["results"][0]["spec"] == SPEC
    assert set(bob.get(f"{path}?include=spec,diagnostics").json()["results"][0]) >= {"spec", "diagnostics"}
    for wrong in ("include=nonsense", "include=", "include=config", "include=spec&limit=21", "include=spec&limit=0"):
        assert bob.get(f"{path}?{wrong}").status_code == 400, wrong
    assert bob.get(f"{tenant.path()}/deployments?include=spec").json()["code"] == "unknown_filter"
    named = bob.get(f"{path}?name=draft-1").json()["results"]
    assert [row["name"] for row in named] == ["draft-1"]
    assert bob.get(f"{path}/{named[0]['id']}").json()["spec"] == SPEC


def test_lists_are_filtered_by_name_slug_and_key(tenant: Tenant) -> None:
    bob, actor, scope, env = tenant.caller("bob"), tenant.principal("bob"), tenant.scope(), tenant.path()
    Agent.objects.create(environment=tenant.dev, name="host")
    draft = create_draft(actor=actor, scope=scope, name="orders", spec=SPEC)
    version = promote_draft(actor=actor, scope=scope, draft_id=draft.pk).version
    bundles = [
        create_bundle(actor=actor, scope=scope, version_id=version.pk, config=config(rule))
        for rule in ("a:drop", "b:drop")
    ]
    asked = request_deployment(actor=actor, scope=scope, bundle_id=bundles[0].pk, targets=Selector(everyone=True))

    def ids(path: str) -> list[str]:
        answer = bob.get(f"{env}/{path}")
        assert answer.status_code == 200, answer.content
        return [row["id"] for row in answer.json()["results"]]

    both = [str(each.pk) for each in reversed(bundles)]
    assert ids(f"versions?spec_hash={version.spec_hash}") == [str(version.pk)]
    assert ids("versions?spec_hash=sha256:none") == []
    assert ids(f"bundles?version_id={version.pk}") == both
    assert ids(f"bundles?version_id={uuid.uuid4()}") == []
    assert ids(f"bundles?config_hash={bundles[0].config_hash}") == [both[1]]
    assert ids(f"deployments?bundle_id={bundles[0].pk}") == [str(asked.pk)]
    assert ids(f"deployments?bundle_id={bundles[1].pk}") == []
    assert "config" not in bob.get(f"{env}/bundles").json()["results"][0]
    assert bob.get(f"{env}/bundles?include=config").json()["results"][1]["config"] == bundles[0].config
    for wrong in ("bundles?version_id=x", "deployments?bundle_id=", "versions?spec_hash=%00"):
        answer = bob.get(f"{env}/{wrong}")
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_filter"), wrong
    slug = tenant.project.slug
    projects = f"/orgs/{tenant.organization.pk}/projects"
    assert len(bob.get(f"{projects}?slug={slug}").json()["results"]) == 1
    assert bob.get(f"{projects}?slug=nothing").json()["results"] == []


def test_diagnostics_are_the_first_and_how_many_more(tenant: Tenant) -> None:
    bob, path = tenant.caller("bob"), f"{tenant.path()}/drafts"
    bad = "\n".join(f"nonsense_{n}" for n in range(3000))
    found = len(compile_spec(bad).diagnostics)
    assert found > 200
    draft = bob.post(path, {"name": "bad", "spec": bad}).json()
    preview = bob.post(f"{path}/{draft['id']}/preview")
    assert len(preview.json()["diagnostics"]) == 201
    assert preview.json()["diagnostics"][-1]["message"] == f"And {found - 200} more."
    refused = bob.post(f"{path}/{draft['id']}/promote")
    assert len(refused.json()["diagnostics"]) == 201
    assert len(refused.content) < 100_000


def test_organizations_of_one_name_at_one_moment_get_slugs_of_their_own(transactional_db: None) -> None:
    made = in_threads(*[lambda: tenancy.create_organization(actor=SYSTEM_ACTOR, name="Same Name")] * 6)
    assert not [each for each in made if isinstance(each, BaseException)]
    assert len({each.slug for each in made}) == 6
