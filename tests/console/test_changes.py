"""What a reviewer is shown is what is signed: by base, whole, with nothing hidden, and in bounded time."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.agents.models import Agent
from apps.approvals.models import Approval
from apps.approvals.services import request_approval
from apps.console import changes
from apps.core import clock
from apps.core.ids import new_id
from apps.core.line_diff import STEPS_AT_LEAST, STEPS_PER_LINE, LineDiff
from apps.deployments.models import Confirmation
from apps.deployments.services import create_bundle, request_deployment
from apps.deployments.services.requests import Selector
from apps.pipelines.services import create_draft, promote_draft
from apps.runtime.config import canonical_config
from tests.approvals.test_approvals import ask, vote
from tests.console.test_approval_page import browser, url_of
from tests.support import Tenant

pytestmark = pytest.mark.django_db


def shown(tenant: Tenant, approval: Approval, who: str = "carol") -> str:
    answer = browser(tenant.people[who]).get(url_of(approval))
    assert answer.status_code == 200
    return answer.content.decode()


def words(page: str) -> str:
    """The page as text."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


def stands_on(approval: Approval, deployments: list[Any]) -> None:
    """The approval's targets, in order of their names, run these deployments."""
    agents = Agent.objects.filter(pk__in=approval.target_agent_ids).order_by("name")
    for agent, deployment_id in zip(agents, deployments, strict=True):
        Confirmation.objects.update_or_create(
            agent_id=agent.pk,
            defaults={
                "environment": approval.environment,
                "deployment_id": deployment_id,
                "sequence": 1,
                "confirmed_at": clock.now(),
            },
        )


def test_agents_on_another_base_are_compared_with_theirs(tenant: Tenant) -> None:
    first = ask(tenant, None, "customer.card:mask=0:2:*", agents=5)
    second = ask(tenant, None, "customer.card:drop", agents=5)
    vote(tenant, "carol", first)
    stands_on(first, [first.deployment_id] * 3 + [second.deployment_id] * 2)
    tenant.caller("bob").post(
        f"{tenant.path(tenant.staging)}/deployments/{first.deployment_id}/cancel", {"reason": "done"}
    )
    wanted = ask(tenant, None, "customer.card:mask=0:2:*", agents=5)
    page = shown(tenant, wanted)
    assert "2 of 5 agents change; 3 do not change." in page
    assert page.count('class="group"') == 2
    assert "rule customer.card:mask=0:2:* replaces customer.card:drop" in page
    assert str(second.deployment_id) in page
    assert "No changes." in page


def test_a_capability_that_only_a_few_agents_gain_is_shown(tenant: Tenant) -> None:
    base = ask(tenant, agents=3)
    posts = _approval_of(tenant, _spec([("post", "http_post:https://hooks.example.com/x")]), RULES, agents=3)
    stands_on(posts, [posts.deployment_id, posts.deployment_id, base.deployment_id])
    page = shown(tenant, posts)
    assert "Gains" in page
    assert "It gains" in page
    assert "it can now send records to other hosts" in page


def test_agents_without_a_base_are_new(tenant: Tenant) -> None:
    base = ask(tenant, agents=3)
    other = ask(tenant, None, "b:drop", agents=3)
    stands_on(other, [base.deployment_id, base.deployment_id, None])
    page = words(shown(tenant, other))
    assert "2 of 3 agents change; new on 1." in page
    assert "New on 1 agent" in page


HIDDEN = "\u202e"
RULES = {"stages": {"redact": {"rules": ["a:drop"]}}}


def test_hidden_characters_are_escapes_wherever_a_reviewer_reads(tenant: Tenant) -> None:
    tenant.people["bob"].name = f"Bob{HIDDEN}"
    tenant.people["bob"].save()
    bundle = _bundle(tenant, _spec(), {"stages": {"redact": {"rules": ["note:replace_with=a\u2028b\u0085c" + HIDDEN]}}})
    Agent.objects.create(environment=tenant.staging, name="host-0")
    made = request_deployment(
        actor=tenant.principal("bob"),
        scope=tenant.scope(tenant.staging),
        bundle_id=bundle.pk,
        targets=Selector(everyone=True),
        reason=f"why{HIDDEN}",
    )
    approval = Approval.objects.get(pk=made.approval_id)
    vote(tenant, "carol", approval, comment=f"ok\u200b{HIDDEN}")
    for page in (shown(tenant, approval), browser(tenant.people["carol"]).get("/admin/").content.decode()):
        assert not set(page) & {HIDDEN, "\u2028", "\u0085", "\u200b"}
    page = shown(tenant, approval)
    assert page.count(">U+202E</mark>") >= 4
    assert ">U+2028</mark>" in page
    assert ">U+0085</mark>" in page
    assert "<bdi>" in page


def test_no_page_of_the_console_leaves_a_hidden_character_unseen(tenant: Tenant) -> None:
    approval = ask(tenant)
    Agent.objects.filter(environment=tenant.staging).update(name=f"host{HIDDEN}", hostname="h\u2066")
    tenant.project.name = f"Orders{HIDDEN}"
    tenant.project.save()
    client = browser(tenant.people["alice"])
    agent = Agent.objects.get(environment=tenant.staging)
    deployment = reverse("admin:deployments_deployment_change", args=[approval.deployment_id])
    urls = [
        reverse("admin:agents_agent_changelist"),
        reverse("admin:agents_agent_change", args=[agent.pk]),
        reverse("admin:tenancy_project_changelist"),
        reverse("admin:tenancy_environment_add"),
        deployment,
        "/admin/",
    ]
    for url in urls:
        page = client.get(url).content.decode()
        assert HIDDEN not in page, url
        assert "U+202E" in page, url
    cards = client.get(reverse("admin:deployments_deployment_state", args=[approval.deployment_id])).content.decode()
    assert "\\u202e" not in cards.lower()
    # a form that is saved keeps the name as it is
    form = client.get(reverse("admin:tenancy_project_change", args=[tenant.project.pk])).content.decode()
    assert f'value="Orders{HIDDEN}"' in form


def _spec(stages: list[tuple[str, str]] | None = None) -> str:
    lines = ["spec.version=1", "pipeline.name=orders", "pipeline.target=SingleRing"]
    for number, (name, op) in enumerate([("redact", "dataguard_redact"), *(stages or [])]):
        lines += [f"single_ring.stages.{number}.id={name}", f"single_ring.stages.{number}.op={op}"]
        if number:
            lines.append(f"single_ring.stages.{number}.depends_on.0={number - 1}")
    return "\n".join(lines) + "\n"


def _bundle(tenant: Tenant, spec: str, config: dict[str, Any]) -> Any:
    scope, actor = tenant.scope(tenant.staging), tenant.principal("bob")
    draft = create_draft(actor=actor, scope=scope, name="orders", spec=spec)
    version = promote_draft(actor=actor, scope=scope, draft_id=draft.pk).version
    return create_bundle(actor=actor, scope=scope, version_id=version.pk, config=config)


def _approval_of(tenant: Tenant, spec: str, config: dict[str, Any], agents: int = 1) -> Approval:
    for n in range(agents - Agent.objects.filter(environment=tenant.staging).count()):
        Agent.objects.create(environment=tenant.staging, name=f"host-{n}")
    made = request_deployment(
        actor=tenant.principal("bob"),
        scope=tenant.scope(tenant.staging),
        bundle_id=_bundle(tenant, spec, config).pk,
        targets=Selector(everyone=True),
    )
    found: Approval = Approval.objects.get(pk=made.approval_id)
    return found


CHECK = (
    "spec.version=1\npipeline.name=orders\npipeline.target=SingleRing\n"
    "single_ring.stages.0.id=s\nsingle_ring.stages.0.op=dataguard_check\n"
)


def largest_config(prefix: str) -> dict[str, Any]:
    """A schema as near to 256 KiB as one more property allows, none of whose properties another prefix has."""
    properties: dict[str, Any] = {}
    config = {"stages": {"s": {"schema": {"type": "object", "properties": properties}}}}
    left = 256 * 1024 - len(canonical_config(config))
    while (left := left - len(f',"{prefix}{len(properties)}":{{"type":"string"}}')) >= 0:
        properties[f"{prefix}{len(properties)}"] = {"type": "string"}
    return config


LINES, ROLES, WIDEST, HASHED = 4096, 256, 26, 2


def largest_spec(prefix: str) -> str:
    """Exactly 4,096 lines, also in canonical form, and 256 roles: two stages, and routers and merges in a row between them, or
    (for the prefix `b`) before them. No line that can be another is as with another prefix."""
    lanes = [f"{prefix}in"]
    roles: list[list[str]] = []

    def stage(name: str, op: str) -> None:
        lanes.append(f"{prefix}after-{name}")
        roles.append([f"name={name}", "kind=stage", f"op={op}", f"rx={lanes[-2]}", f"tx={lanes[-1]}"])

    if prefix != "b":
        stage(f"{prefix}first", "identity")
    for n in range(ROLES // 2 - 1):
        between, after = [f"{prefix}w{n}x{way}" for way in range(5 if n < WIDEST else 4)], f"{prefix}l{n}"
        hashed = ["policy=hash", f"hash_key={prefix}key"] if n < HASHED else ["policy=round_robin"]
        roles.append(
            [f"name={prefix}r{n}", "kind=router", f"rx={lanes[-1]}", *hashed]
            + [f"tx.{way}={name}" for way, name in enumerate(between)]
        )
        roles.append(
            [f"name={prefix}m{n}", "kind=merge", f"policy={'ordered' if prefix == 'b' else 'arrival'}", f"tx={after}"]
            + [f"rx.{way}={name}" for way, name in enumerate(between)]
        )
        lanes += [*between, after]
    if prefix == "b":
        stage(f"{prefix}first", "identity")
    stage("s", "dataguard_check")
    on_full, ends = ("drop", ("egress", "ingress")) if prefix == "b" else ("block", ("ingress", "egress"))
    lines = [
        "spec.version=1",
        f"pipeline.name={prefix}big",
        "pipeline.target=LaneGraph",
        f"lane_graph.on_full={on_full}",
    ]
    for n, name in enumerate(lanes):
        at = f"lane_graph.lanes.{n}"
        capacity, kind = 1024 + n + (5000 if prefix == "b" else 0), "journal" if prefix == "b" else "sequenced_slots"
        lines += [f"{at}.name={name}", f"{at}.kind={kind}", f"{at}.capacity={capacity}"]
    for n, end in enumerate(ends):
        lane = lanes[0] if end == "ingress" else lanes[-1]
        lines += [f"lane_graph.endpoints.{n}.lane={lane}", f"lane_graph.endpoints.{n}.kind={end}"]
    for n, role in enumerate(roles):
        lines += [f"lane_graph.roles.{n}.{setting}" for setting in role]
    assert (len(lines), len(set(lines)), len(roles)) == (LINES, LINES, ROLES)
    return "\n".join(lines) + "\n"


def _calls(do: Callable[[], object]) -> int:
    """How many functions `do` calls: what its processor time grows with, and the same on every machine."""
    counted = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(None)
    return counted


CALLS_PER_LINE = 100
"""Twice what the page of the largest change takes for each line of both specs and configurations."""


def test_the_largest_change_is_a_page_of_few_queries_and_of_few_steps_a_line(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    former, wanted = (_approval_of(tenant, largest_spec(prefix), largest_config(prefix)) for prefix in ("a", "b"))
    stands_on(wanted, [former.deployment_id])
    diffs: list[LineDiff] = []
    compared: list[str] = []

    def line_diff(old: str, new: str) -> LineDiff:
        diffs.append(original(old, new))
        compared.append(old + new)
        return diffs[-1]

    original = changes.line_diff
    monkeypatch.setattr(changes, "line_diff", line_diff)
    client = browser(tenant.people["carol"])
    client.get(url_of(wanted))
    diffs.clear()
    compared.clear()
    with CaptureQueriesContext(connection) as captured:
        page = client.get(url_of(wanted)).content.decode()
    assert len(captured) <= 25
    assert "255 roles are new" in page, "one stage is named by the configuration, so it is in both"
    assert "settings are new" in page
    assert "too many for one picture" in page
    lines = sum(text.count("\n") for text in compared)
    assert len(diffs) == 2, "the specs and the configurations, once each"
    assert lines > 2 * LINES + 2 * 15_000
    assert sum(diff.steps for diff in diffs) <= STEPS_PER_LINE * (lines + 2) + 2 * STEPS_AT_LEAST
    assert _calls(lambda: client.get(url_of(wanted))) <= CALLS_PER_LINE * lines
    # the inbox reads neither
    with CaptureQueriesContext(connection) as captured:
        client.get("/admin/")
    assert len(captured) <= 25
    assert not [
        q for q in captured if "pipelines_pipelineversion" in q["sql"] or "deployments_configbundle" in q["sql"]
    ]


def test_unchanged_parts_are_folded_and_changed_ones_whole(tenant: Tenant) -> None:
    rules = [f"field{n}:drop" for n in range(200)]
    former = ask(tenant, None, *rules)
    wanted = ask(tenant, None, *rules[:100], "customer.card:hash", *rules[101:])
    stands_on(wanted, [former.deployment_id])
    page = shown(tenant, wanted)
    assert re.search(r"\d+ unchanged lines", page)
    assert "rule customer.card:hash is new" in page
    assert "rule field100:drop is gone" in page


def test_a_difference_too_long_for_the_page_has_one_of_its_own(tenant: Tenant, monkeypatch: Any) -> None:
    monkeypatch.setattr("apps.console.changes.SHOWN_LINES", 3)
    former, wanted = ask(tenant, None, "a:drop", "b:drop", "c:drop"), ask(tenant, None, "d:drop", "e:drop", "f:drop")
    stands_on(wanted, [former.deployment_id])
    page = shown(tenant, wanted)
    assert "too long for this page" in page
    compare = reverse("admin:approvals_approval_compare", args=[wanted.pk, former.deployment_id])
    assert compare in page
    whole = browser(tenant.people["carol"]).get(compare).content.decode()
    assert whole.count("diff-removed") == 1
    assert "d:drop" in whole
    assert browser(tenant.people["charlie"]).get(compare).status_code == 404
    assert browser(tenant.people["carol"]).get(compare.replace(str(former.deployment_id), "x")).status_code == 404


def test_the_page_of_an_approval_without_a_deployment_is_a_page(tenant: Tenant) -> None:
    approval = _replay(tenant)
    page = shown(tenant, approval)
    assert "Replay" in page
    assert ">Approve</button>" in page
    assert browser(tenant.people["carol"]).get("/admin/").status_code == 200


def _replay(tenant: Tenant) -> Approval:
    from apps.approvals import registry

    class Subject:
        def present_bases(self, approvals: Any) -> Any:
            return {approval.pk: {} for approval in approvals}

        def on_approved(self, **_: Any) -> None: ...

        def on_denied(self, **_: Any) -> None: ...

        def on_revoked(self, **_: Any) -> None: ...

        def on_credential_expired(self, **_: Any) -> None: ...

    registry.register_subject("replay_execute", Subject())
    return request_approval(
        actor=tenant.principal("bob"),
        scope=tenant.scope(tenant.staging),
        action="replay_execute",
        subject_id=new_id(),
        spec_hash="sha256:0",
        config_hash="sha256:0",
        capabilities=["action:http_post"],
        strategy={},
        target_agent_ids=[],
        base={},
    )


def test_who_may_do_what_is_all_that_is_offered(tenant: Tenant) -> None:
    approval = ask(tenant)
    asker, reviewer, viewer = (shown(tenant, approval, who) for who in ("bob", "carol", "vera"))
    assert "Withdraw my request" in asker
    for page in (reviewer, viewer):
        assert 'value="revoke"' not in page
    assert 'value="approve"' not in viewer + asker
    vote(tenant, "carol", approval)
    page = shown(tenant, approval)
    assert "Stop this rollout" in page
    client = browser(tenant.people["carol"])
    silent = client.post(url_of(approval), {"decision": "revoke", "comment": ""})
    assert (silent.status_code, 'data-code="comment_required"' in silent.content.decode()) == (422, True)
    assert client.post(url_of(approval), {"decision": "revoke", "comment": "wrong host"}).status_code == 302


def test_a_vote_that_waits_for_more_names_for_whom(tenant: Tenant) -> None:
    approval = ask(tenant, tenant.prod)
    client = browser(tenant.people["carol"])
    digest = re.search(r'name="shown_digest" value="([^"]+)"', shown(tenant, approval))
    assert digest
    body = {"decision": "approve", "comment": "", "shown_digest": digest[1]}
    page = client.post(url_of(approval), body, follow=True).content.decode()
    assert "Approved, 1 of 2: it needs one more approval." in page
    assert "One more person must approve. Eligible: Alice." in page
    assert "You approved it at" in page


def test_the_page_states_that_too_few_may_decide(tenant: Tenant) -> None:
    from apps.access.models import Membership

    approval = ask(tenant)
    Membership.objects.filter(organization=tenant.organization).exclude(user=tenant.people["bob"]).update(role="viewer")
    page = shown(tenant, approval, "bob")
    assert 'data-code="no_eligible_reviewer"' in page
    assert "no people can give it now" in page
    answer = tenant.caller("bob").get(f"{tenant.path(tenant.staging)}/approvals/{approval.pk}").json()
    assert answer["status_reason"].startswith(
        "no_eligible_reviewer: It needs 1 more approval, and no people can give it"
    )


def test_a_nul_in_a_comment_is_400(tenant: Tenant) -> None:
    approval = ask(tenant)
    answer = browser(tenant.people["carol"]).post(url_of(approval), {"decision": "deny", "comment": "a\x00b"})
    assert answer.status_code == 400


def test_a_poll_that_has_the_comparison_is_not_sent_it_and_a_link_can_not_hide_it(tenant: Tenant) -> None:
    approval = ask(tenant)
    client = browser(tenant.people["carol"])
    state = reverse("admin:approvals_approval_state", args=[approval.pk])
    first = client.get(state).json()["cards"]
    known = ",".join(f"{name}:{card['version']}" for name, card in first.items())
    assert client.get(state, {"known": known}).json()["cards"] == {}
    assert "What changes" in client.get(url_of(approval), {"known": known}).content.decode()


def test_an_approval_page_is_a_bounded_number_of_queries(tenant: Tenant) -> None:
    approval = ask(tenant, agents=5)
    client = browser(tenant.people["carol"])
    client.get(url_of(approval))
    with CaptureQueriesContext(connection) as captured:
        client.get(url_of(approval))
    assert len(captured) <= 28, len(captured)


def test_many_large_bases_share_the_bound_of_one_page(tenant: Tenant, monkeypatch: Any) -> None:
    monkeypatch.setattr("apps.console.changes.SHOWN_LINES", 4)
    first, second = ask(tenant, None, "a:drop", "b:drop", agents=2), ask(tenant, None, "c:drop", "d:drop", agents=2)
    wanted = ask(tenant, None, "e:drop", "f:drop", agents=2)
    stands_on(wanted, [first.deployment_id, second.deployment_id])
    page = shown(tenant, wanted)
    assert page.count('class="diff"') == 1
    assert "Show the changes" in page
