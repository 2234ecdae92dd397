"""`manage.py up --demo` started again, and its output meanwhile."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.access import services as access
from apps.access.models import Membership, User
from apps.agents.models import Agent
from apps.console.setup import demo
from apps.core.actors import SYSTEM_ACTOR
from apps.tenancy import services as tenancy
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope
from byteor import logs

pytestmark = pytest.mark.django_db


@pytest.fixture
def started(tmp_path: Path, settings: Any) -> demo.Demo:
    """The demo as its first start made it."""
    settings.BYTEOR_DATA_DIR = tmp_path
    return demo.prepare()


def delete_environment(made: demo.Demo) -> None:
    tenancy.delete_node(actor=SYSTEM_ACTOR, scope=made.scope, force=True)


def delete_project(made: demo.Demo) -> None:
    tenancy.delete_node(actor=SYSTEM_ACTOR, scope=Scope(made.scope.organization, made.scope.project), force=True)


def delete_organization(made: demo.Demo) -> None:
    tenancy.delete_node(actor=SYSTEM_ACTOR, scope=Scope(made.scope.organization), force=True)


def remove_the_operator(made: demo.Demo) -> None:
    row = Membership.objects.get(organization=made.scope.organization, email="oleg@demo.example")
    access.remove_member(actor=made.person("ada"), scope=Scope(made.scope.organization), member_id=row.pk)


def lose_the_accounts(made: demo.Demo) -> None:
    demo.accounts_file().unlink()


@pytest.mark.parametrize(
    "loss", [delete_environment, delete_project, delete_organization, remove_the_operator, lose_the_accounts]
)
def test_a_second_start_makes_again_what_was_deleted(started: demo.Demo, loss: Callable[[demo.Demo], None]) -> None:
    loss(started)
    again = demo.prepare()
    assert Organization.objects.get(pk=again.scope.organization.pk).deleted_at is None
    assert Project.objects.get(pk=again.scope.project_id).deleted_at is None
    assert Environment.objects.get(pk=again.scope.require_environment().pk).deleted_at is None
    assert str(again.scope.require_environment().pk) in again.environment_url
    for account in again.accounts:
        member = Membership.objects.filter(organization=again.scope.organization, email=account["email"])
        assert member.exists(), account["email"]
    assert json.loads(demo.accounts_file().read_text()) == again.accounts
    oleg = User.objects.get(email="oleg@demo.example")
    (password,) = [account["password"] for account in again.accounts if account["email"] == oleg.email]
    assert oleg.check_password(password) or loss is lose_the_accounts


def test_a_second_start_with_nothing_deleted_changes_nothing(started: demo.Demo) -> None:
    again = demo.prepare()
    assert (again.scope.require_environment().pk, again.accounts) == (
        started.scope.require_environment().pk,
        started.accounts,
    )


def test_an_agent_of_a_deleted_environment_enrolls_again(started: demo.Demo, tmp_path: Path) -> None:
    fleet = demo.Fleet(started)
    state = tmp_path / "state"
    state.mkdir()
    assert not fleet._is_enrolled(state)
    agent = Agent.objects.create(environment=started.scope.require_environment(), name="till")
    (state / "agent.json").write_text(json.dumps({"agent_id": str(agent.pk)}))
    assert fleet._is_enrolled(state)
    agent.delete()
    assert not fleet._is_enrolled(state)


def request_line(route: str, status: int = 200) -> logging.LogRecord:
    event: Any = {"event": "request", "route": route, "status": status}
    return logging.LogRecord("x", logging.INFO, "", 0, event, None, None)


def test_the_brief_log_counts_heartbeats_once_a_minute_and_has_everything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "ROUTINE_EVERY", 0.0)
    brief = logs.BriefFilter()
    first = request_line("api/v1/agents/<uuid:agent_id>/heartbeat")
    assert brief.filter(first)
    assert first.msg == {"event": "heartbeats, polls and probes", "count": 1, "level": "info"}  # type: ignore[comparison-overlap]
    monkeypatch.setattr(logs, "ROUTINE_EVERY", 60.0)
    assert not brief.filter(request_line("api/v1/agents/<uuid:agent_id>/heartbeat"))
    assert not brief.filter(request_line("healthz"))
    assert brief.filter(request_line("api/v1/agents/<uuid:agent_id>/heartbeat", 401))
    assert brief.filter(request_line("api/v1/me"))
    assert brief.filter(logging.LogRecord("x", logging.WARNING, "", 0, "text", None, None))
