"""The deployment's page: what it shows and offers at each moment, on a reload and on a page that was left open alike."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.agents.models import Agent
from apps.approvals.models import Approval, Decision
from apps.core import clock
from apps.core.ids import new_id
from apps.deployments.models import Deployment, Target
from tests.deployments.world import World
from tests.support import Tenant

pytestmark = pytest.mark.django_db

PHASED = {
    "type": "phased",
    "phases": [{"percent": 25, "bake_seconds": 90}, {"percent": 100, "bake_seconds": 0}],
    "max_failures": 1,
    "auto_rollback": True,
}
TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="[^"]+"')


@pytest.fixture
def world(tenant: Tenant) -> World:
    world = World(tenant, tenant.staging)
    world.enroll(5)
    return world


def signed_in(world: World, who: str) -> Client:
    client = Client()
    client.force_login(world.tenant.people[who])
    return client


def url_of(made: str) -> str:
    return reverse("admin:deployments_deployment_change", args=[made])


def state_url(made: str) -> str:
    return reverse("admin:deployments_deployment_state", args=[made])


class OpenPage:
    """A page in a browser that only ever puts in place what the polls send."""

    def __init__(self, world: World, made: str, who: str) -> None:
        self.client, self.made = signed_in(world, who), made
        self.cards: dict[str, dict[str, str]] = {}
        self.poll()

    def poll(self, query: str = "") -> dict[str, Any]:
        known = ",".join(f"{name}:{card['version']}" for name, card in self.cards.items())
        answer = self.client.get(f"{state_url(self.made)}?known={known}{query}")
        assert answer.status_code == 200
        assert "no-store" in answer["Cache-Control"]
        body: dict[str, Any] = answer.json()
        self.cards |= body["cards"]
        return body

    def html(self) -> str:
        return "".join(card["html"] for card in self.cards.values())

    def is_what_a_reload_shows(self) -> None:
        page = TOKEN.sub("", self.client.get(url_of(self.made)).content.decode())
        for name, card in self.cards.items():
            assert f'data-card="{name}" data-version="{card["version"]}"' in page
            assert TOKEN.sub("", card["html"]) in page


def actions(html: str) -> list[str]:
    return re.findall(r'name="action" value="(\w+)">([^<]+)<', html)


def test_a_page_left_open_shows_and_offers_at_each_moment_what_a_reload_would(world: World) -> None:
    made = world.request(targets=world.hosts[:4], strategy=PHASED)
    pages = {who: OpenPage(world, made, who) for who in ("bob", "carol", "vera", "alice")}

    def look(status: str, *offered: str) -> str:
        for who, page in pages.items():
            body = page.poll()
            page.is_what_a_reload_shows()
            assert status in body["announcement"]
            assert body["title"].startswith(status.split(",")[0])
            assert bool(actions(page.html())) == (bool(offered) and who != "vera")
        html = pages["carol"].html()
        assert [value for value, _ in actions(html)] == list(offered)
        return html

    for page in pages.values():
        page.poll()
    assert actions(pages["bob"].html()) == [("cancel", "Withdraw the request")]
    assert actions(pages["carol"].html()) == []
    assert "Only Bob can withdraw it" in pages["carol"].html()
    earlier = Approval.objects.get(deployment_id=made)
    carol = {"reviewer_id": world.tenant.people["carol"].pk, "reviewer_name": "Carol"}
    Decision.objects.create(approval=earlier, decision="approve", digest="of a former base", **carol)
    world.decide(made)
    html = look("approved", "cancel")
    assert "Carol" in html
    assert "seen" in html
    assert "1 of 1" in html, "the vote on a former base does not count"
    world.work()
    look("deploying", "rollback", "cancel")
    world.hosts[0].step()
    html = look("deploying, phase 1 baking", "rollback", "cancel")
    assert "badge-baking" in html
    row = world.row(made)
    assert row.bake_ends_at is not None
    assert f'data-ends-at="{row.bake_ends_at.isoformat()}"' in html
    assert row.bundle_sha256 in html
    world.act(made, "rollback", body={"reason": "too slow"})
    look("rolling back")
    for host in world.hosts[:4]:
        host.step()
    html = look("rolled back")
    assert "too slow" in html
    assert pages["vera"].poll()["settled"] is True


def test_a_poll_sends_only_what_changed(world: World) -> None:
    made = world.request(targets=world.hosts[:2])
    page = OpenPage(world, made, "carol")
    assert set(page.cards) == {"status", "phases", "agents", "history", "actions", "votes", "evidence"}
    assert page.poll()["cards"] == {}
    world.decide(made)
    assert set(page.poll()["cards"]) == {"status", "history", "actions", "votes"}
    for garbage in ("x" * 5000, "status:zz", "status:000000000000,,:", "%01"):
        answer = page.client.get(f"{state_url(made)}?known={garbage}&page=-1&target=%01")
        assert len(answer.json()["cards"]) == 7


def test_it_settles_and_stops_when_nothing_changes_by_itself_any_more(world: World) -> None:
    made = world.request(targets=world.hosts[:2])
    page = OpenPage(world, made, "carol")
    assert page.poll()["settled"] is False
    world.decide(made)
    world.work()
    assert page.poll()["settled"] is False
    world.settle(*world.hosts[:2])
    body = page.poll()
    assert body["settled"] is True
    assert "2 agents: 2 activated" in body["announcement"]


def test_what_an_approved_one_waits_for_is_named_with_a_link(world: World) -> None:
    first = world.request(targets=world.hosts[:4])
    world.decide(first)
    world.work()
    second = world.request(world.bundle("phone:drop"), targets=world.hosts[2:])
    world.decide(second)
    third = world.request(world.bundle("name:drop"), targets=world.hosts[4:])
    world.decide(third)
    page = OpenPage(world, second, "carol")
    html = page.html()
    assert "is blocked by" in html
    assert f'<a href="{url_of(first)}">orders v1</a>' in html
    assert "on 2 of the same agents" in html
    assert "It is blocked by orders v1" in page.poll()["announcement"]
    # an older approval is not overtaken, even where its agents are free
    behind = OpenPage(world, third, "carol").html()
    assert f'<a href="{url_of(second)}">orders v1</a>' in behind
    world.settle(*world.hosts[:4])
    assert "same agents" not in {**page.cards, **page.poll()["cards"]}["status"]["html"]


def test_a_base_that_is_being_rolled_out_is_not_shown_as_running(world: World) -> None:
    first = world.request(targets=world.hosts[:4])
    world.decide(first)
    world.work()
    second = world.request(world.bundle("phone:drop"), targets=world.hosts[:4])
    page = reverse("admin:approvals_approval_change", args=[world.row(second).approval_id])

    def title() -> str:
        html = signed_in(world, "carol").get(page).content.decode()
        found = re.search(r'<h3 class="group-title">(.*?)</h3>', html, re.S)
        assert found
        assert f'<a href="{url_of(first)}">orders v1</a>' in found[1]
        return " ".join(re.sub("<[^>]+>", "", found[1]).split())

    assert title() == "4 agents that are being updated to orders v1 with another configuration"
    world.settle(*world.hosts[:4])
    assert title() == "4 agents that run orders v1 with another configuration"


def test_an_expired_one_that_was_not_swept_offers_nothing(world: World) -> None:
    made = world.request(targets=world.hosts[:1])
    client = signed_in(world, "bob")
    with time_machine.travel(clock.now() + dt.timedelta(hours=24, minutes=1), tick=False):
        page = client.get(url_of(made)).content.decode()
    assert Deployment.objects.get(pk=made).status == "pending_approval"
    assert actions(page) == []
    assert "The approval expired" in page


def test_each_line_of_the_history_names_its_status(world: World) -> None:
    made = world.roll_out_approved(targets=world.hosts[:2])
    history = OpenPage(world, made, "carol").cards["history"]["html"]
    for status in ("pending_approval", "approved", "building", "deploying", "active"):
        assert f'<span class="badge badge-{status}">{status.replace("_", " ")}</span>' in history


def test_a_superseded_one_is_shown_as_superseded_and_the_current_one_as_running(world: World) -> None:
    first = world.roll_out_approved(targets=world.hosts[:2])
    second = world.roll_out_approved(world.bundle("phone:drop"), targets=world.hosts[:2])
    old, new = OpenPage(world, first, "carol").html(), OpenPage(world, second, "carol").html()
    assert "superseded" in old
    assert f'Superseded by <a href="{url_of(second)}">orders v1</a>' in old
    assert actions(old) == []
    assert "runs now" in new
    assert actions(new) == [("rollback", "Roll back")]


def test_a_second_click_gets_a_message_that_it_was_done(world: World) -> None:
    made = world.roll_out_approved(targets=world.hosts[:2])
    client = signed_in(world, "carol")
    assert client.post(url_of(made), {"action": "rollback", "reason": ""}).status_code == 302
    again = client.post(url_of(made), {"action": "rollback", "reason": "again"})
    assert again.status_code == 409
    assert "It is already rolling back." in again.content.decode()


def test_a_refused_action_keeps_the_reason_that_was_typed(world: World) -> None:
    made = world.request(targets=world.hosts[:2])
    answer = signed_in(world, "bob").post(url_of(made), {"action": "explode", "reason": "because of this"})
    assert answer.status_code == 422
    assert "because of this</textarea>" in answer.content.decode()
    answer = signed_in(world, "bob").post(url_of(made), {"action": "cancel", "reason": "a\x00b"})
    assert answer.status_code == 400
    assert Deployment.objects.get(pk=made).status == "pending_approval"


def test_the_tab_names_the_pipeline_and_the_environment_and_the_page_works_without_scripts(
    world: World,
) -> None:
    made = world.request(targets=world.hosts[:2])
    page = signed_in(world, "vera").get(url_of(made)).content.decode()
    assert "<title>pending approval · orders v1 to Orders / staging · Deployment · ByteOr Cloud</title>" in page
    assert "<noscript>" in page
    assert 'aria-live="polite"' in page


def many_targets(world: World, made: str, count: int) -> None:
    agents = Agent.objects.bulk_create(
        [Agent(environment=world.env, name=f"zz-{number:05d}", last_seen_at=clock.now()) for number in range(count)]
    )
    Target.objects.bulk_create(
        [
            Target(
                deployment_id=made,
                agent_id=agent.pk,
                agent_name=agent.name,
                report={"log_tail": "x" * 200, "failure": "bad_health: it did not start"},
            )
            for agent in agents
        ]
    )


@pytest.mark.postgres
def test_a_poll_costs_the_same_with_five_thousand_agents(world: World) -> None:
    made = world.request(targets=world.hosts[:2])
    page = OpenPage(world, made, "carol")

    def queries() -> int:
        page.cards = {}
        with CaptureQueriesContext(connection) as captured:
            page.poll()
        return len(captured)

    few = queries()
    many_targets(world, made, 5000)
    assert queries() == few
    assert few <= 20
    assert len(page.client.get(f"{state_url(made)}?page=3").content) < 64 * 1024
    assert len(page.client.get(url_of(made)).content) < 100 * 1024
    third = page.client.get(f"{state_url(made)}?page=3").json()["cards"]["agents"]["html"]
    assert third.count("<tr data-agent=") == 50
    assert "Page 3 of 101" in third
    assert "bad_health: it did not start" in third
    last = page.client.get(f"{state_url(made)}?page=999999&target=pending").json()["cards"]["agents"]["html"]
    assert "Page 101 of 101" in last


def test_a_poll_of_another_tenant_or_without_a_session_finds_nothing(world: World) -> None:
    made = world.request(targets=world.hosts[:1])
    assert signed_in(world, "charlie").get(state_url(made)).status_code == 404
    assert Client().get(state_url(made)).status_code == 302
    assert Approval.objects.count() == 1
    assert Client().get(state_url(str(new_id()))).status_code == 302
