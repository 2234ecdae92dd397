"""A LaneGraph with an effect takes the whole road: draft, version, config, approval, credential, signed bundle, host."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.runtime.interpreter import Interpreter
from apps.runtime.spec import Plan, compile_spec
from tests.deployments.world import World
from tests.runtime.interp.test_effects import RecordedEffects

pytestmark = pytest.mark.django_db

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
SPEC = (EXAMPLES / "22-routed.kv").read_text()
RULES = {"rules": ["card:drop"]}
CONFIG: dict[str, Any] = {
    "adapters": {"ingress": {"lanes": {"in": {"type": "file", "path": "in.jsonl"}}}},
    "stages": {"redact-one": RULES, "redact-other": RULES},
}


def _bundle(world: World, config: dict[str, Any], version_id: str) -> Any:
    return world.bob.post(f"{world.path}/bundles", {"version_id": version_id, "config": config})


def test_a_graph_is_approved_for_what_it_does_and_runs_on_the_hosts_as_it_was_signed(staging: World) -> None:
    staging.version_id = staging.version(SPEC)
    version = staging.bob.get(f"{staging.path}/versions/{staging.version_id}").json()
    assert (version["target"], version["capabilities"]) == ("LaneGraph", ["action:http_post"])
    bundle = _bundle(staging, CONFIG, staging.version_id).json()["id"]
    made = staging.request(bundle)
    approval = staging.approval(made)
    assert approval["capabilities"] == ["action:http_post"]
    assert staging.decide(made).status_code == 200
    staging.work()
    for host in staging.hosts:
        assert host.step() == "activate"
    assert staging.status(made) == "active"
    credential = staging.bob.get(f"{staging.path}/approvals/{approval['id']}/credential").json()["credential"]
    payload = credential.split(".")[0]
    reported_fields = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert reported_fields["capabilities"] == ["action:http_post"]
    running = staging.hosts[0].running
    assert running is not None
    assert running.plan == compile_spec(SPEC).plan.as_dict()  # type: ignore[union-attr]
    effects = RecordedEffects()
    runner = Interpreter(Plan.from_dict(running.plan), running.config["stages"], effects)
    outcomes = [runner.process(b'{"customer":{"id":%d},"card":1}' % number) for number in range(12)]
    assert all(len(outcome.emissions) == 1 for outcome in outcomes)
    posted = [outcome.emitted for outcome in outcomes if "notify" in outcome.passed]
    assert [body for _, body in effects.asked] == posted
    assert 0 < len(posted) < 12


def test_the_reviewer_sees_lanes_and_roles_and_which_of_them_acts_on_the_world(staging: World) -> None:
    staging.version_id = staging.version(SPEC)
    made = staging.request(_bundle(staging, CONFIG, staging.version_id).json()["id"])
    reviewer = Client()
    reviewer.force_login(staging.tenant.people["carol"])
    page = reviewer.get(reverse("admin:approvals_approval_change", args=[staging.show(made)["approval_id"]]))
    text = page.content.decode()
    drawing = text.split('<div class="graph-frame" tabindex="0"', 1)[1].split("</svg>")[0]
    assert drawing.count("graph-node-end") == 2
    assert drawing.count("graph-node-lane") == 4
    assert drawing.count("graph-node-power") == 1
    assert "<title>notify: http_post:https://hooks.example.com/orders</title>" in drawing
    assert "<title>by-customer: router hash customer.id</title>" in drawing
    assert "Role notify (http_post:https://hooks.example.com/orders) is new, from even to out." in text


def test_a_config_that_names_lanes_a_graph_does_not_have_is_refused_with_all_problems(world: World) -> None:
    version_id = world.version((EXAMPLES / "21-fan-out-and-merge.kv").read_text())
    adapters = {
        "ingress": {"type": "file", "path": "in.jsonl"},
        "egress": {"lanes": {"out": {"type": "file", "path": "a"}, "exit": {"type": "file", "path": "a"}}},
    }
    answer = _bundle(world, {"adapters": adapters, "stages": {"check": {"schema": True}}}, version_id)
    assert answer.status_code == 422
    assert [(item["pointer"], item["code"]) for item in answer.json()["errors"]] == [
        ("/config/adapters/ingress", "lanes_needed"),
        ("/config/adapters/egress/lanes/exit", "unknown_lane"),
        ("/config/adapters/egress/lanes/exit/path", "used_twice"),
        ("/config/stages/redact", "rules_missing"),
    ]


def test_the_changes_of_a_later_graph_are_listed_by_roles_and_lanes_before_it_is_promoted(world: World) -> None:
    first = world.version(SPEC)
    later = SPEC.replace("capacity=64", "capacity=128").replace("=round_robin", "=broadcast")
    draft = world.bob.post(f"{world.path}/drafts", {"name": "routed", "spec": later}).json()
    world.work()
    seen = world.bob.get(f"{world.path}/drafts/{draft['id']}").json()
    assert (seen["status"], seen["target"], seen["capabilities"]) == ("valid", "LaneGraph", ["action:http_post"])
    preview = world.bob.post(f"{world.path}/drafts/{draft['id']}/preview").json()
    changes = [(item["kind"], item["subject"]) for item in preview["diff"]["changes"]]
    assert changes == [("capacity_changed", "out"), ("policy_changed", "in-turn")]
    assert preview["plan"]["plan_v"] == 2
    second = world.version(later)
    diff = world.bob.get(f"{world.path}/versions/{second}/diff?against={first}").json()
    assert [item["kind"] for item in diff["changes"]] == ["capacity_changed", "policy_changed"]


def test_a_graph_with_errors_is_kept_as_a_draft_with_each_at_its_line_and_is_not_promoted(world: World) -> None:
    wrong = (EXAMPLES / "31-refused-roles.kv").read_text()
    draft = world.bob.post(f"{world.path}/drafts", {"name": "roles", "spec": wrong}).json()
    world.work()
    seen = world.bob.get(f"{world.path}/drafts/{draft['id']}").json()
    expected = [item.as_dict() for item in compile_spec(wrong).diagnostics]
    assert (seen["status"], seen["diagnostics"]) == ("invalid", expected)
    answer = world.bob.post(f"{world.path}/drafts/{draft['id']}/promote")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec")
