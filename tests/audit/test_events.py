"""What an event states exactly, and what a chain's head and MAC are good for."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from typing import Any

import pytest
import rfc8785
import time_machine

from apps.access.models import User
from apps.access.principals import person_principal
from apps.audit import services
from apps.audit.coalescing import Coalescer
from apps.audit.models import AuditEvent, ChainHead
from apps.core import context
from apps.core.actors import ActorRef
from apps.core.errors import Unavailable
from apps.core.ids import new_id
from tests.support import Tenant, make_person

pytestmark = pytest.mark.django_db

BOB = ActorRef("person", "b", "Bob")


def write(organization_id: uuid.UUID | None, **more: Any) -> AuditEvent:
    event: dict[str, Any] = {"action": "x.done", "actor": BOB, "target": "x:1", **more}
    return services.record(organization_id=organization_id, **event)


def test_an_event_is_stored_exported_and_hashed_with_everything_that_is_known_of_it() -> None:
    org = new_id()
    here = context.RequestContext(request_id="r-1", ip="192.0.2.7", credential_id="pat_1")
    first = write(org)
    with context.serving(here), time_machine.travel(dt.datetime(2026, 3, 4, 5, 6, 7, 891_234, dt.UTC), tick=False):
        write(org, outcome="denied", scope={"environment_id": org}, details={"n": 1})
    event = AuditEvent.objects.get(chain=str(org), seq=2)
    assert services.document(event) == {
        "id": str(event.pk),
        "chain": str(org),
        "seq": 2,
        "timestamp": "2026-03-04T05:06:07.891Z",
        "organization_id": str(org),
        "outcome": "denied",
        "actor": "person:b",
        "actor_name": "Bob",
        "action": "x.done",
        "target": "x:1",
        "resource_scope": {"environment_id": str(org)},
        "request_id": "r-1",
        "ip": "192.0.2.7",
        "credential_id": "pat_1",
        "details": {"n": 1},
    }
    assert event.created_at.microsecond == 891_000
    assert event.previous_hash == first.hash
    content = first.hash.encode() + rfc8785.dumps(services.document(event))
    assert event.hash == hashlib.sha256(content).hexdigest()
    head = ChainHead.objects.get(pk=str(org))
    assert (head.count, head.hash) == (2, event.hash)
    assert services.verify(org).as_dict() == {
        "ok": True,
        "events": 2,
        "head_hash": event.hash,
        "broken_at": None,
        "problem": "",
    }


def test_the_first_event_of_a_chain_follows_nothing_and_the_system_has_a_chain_too() -> None:
    first = write(None)
    assert (first.seq, first.previous_hash, first.chain, first.organization_id) == (1, "0" * 64, "system", None)
    assert (first.outcome, first.resource_scope, first.details) == ("allowed", {}, {})
    assert services.document(first)["organization_id"] is None
    assert services.verify(None).events == 1
    empty = services.verify(new_id())
    assert (empty.ok, empty.events, empty.head_hash, empty.head) == (True, 0, "0" * 64, (0, "0" * 64))


def test_long_names_are_cut_to_their_columns() -> None:
    event = write(new_id(), actor=ActorRef("person", "i" * 300, "n" * 300))
    assert (event.actor, event.actor_name) == (("person:" + "i" * 300)[:200], "n" * 200)


def test_details_are_json_that_every_reader_reads_alike() -> None:
    one = new_id()
    event = write(
        new_id(),
        details={
            "id": one,
            "set": {"b", "a"},
            "frozen": frozenset((3, 1)),
            "tuple": (True, 1, None),
            "nested": {1: {"when": dt.date(2026, 1, 2)}},
            "most": 2**53 - 1,
            "least": 1 - 2**53,
            "more": 2**53,
            "less": -(2**53),
            "half": 0.5,
        },
    )
    assert AuditEvent.objects.get(pk=event.pk).details == {
        "id": str(one),
        "set": ["a", "b"],
        "frozen": [1, 3],
        "tuple": [True, 1, None],
        "nested": {"1": {"when": "2026-01-02"}},
        "most": 2**53 - 1,
        "least": 1 - 2**53,
        "more": str(2**53),
        "less": str(-(2**53)),
        "half": 0.5,
    }


def test_events_are_read_in_their_order_and_the_newest_about_one_object_first() -> None:
    org, other = new_id(), new_id()
    for target in ("x:1", "x:2", "x:1", "x:1"):
        write(org, target=target)
    write(other, target="x:1")
    assert [event.seq for event in services.events_of(org)] == [1, 2, 3, 4]
    assert [event.seq for event in services.events_about("x:1", org, most=2)] == [4, 3]
    assert [event.seq for event in services.events_about("x:1", org, most=9)] == [4, 3, 1]


# --- parts, and what was recorded earlier ---


def test_a_part_of_a_chain_is_verified_from_the_event_after_which_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "VERIFY_BATCH", 2)
    org = new_id()
    events = [write(org) for _ in range(5)]
    head = (5, events[4].hash)

    def found(**given: Any) -> services.Verification:
        return services.verify(org, **given)

    def good(events_seen: int, next_: int | None) -> services.Verification:
        return services.Verification(True, events_seen, events[events_seen - 1].hash, next=next_, head=head)

    assert found() == good(5, None)
    assert found(limit=2) == good(2, 2)
    assert found(after=2, limit=2) == good(4, 4)
    assert found(after=4, limit=2) == found(after=4) == found(after=5) == good(5, None)
    assert found(after=4, limit=1) == good(5, None)
    missing = services.Verification(False, 6, "0" * 64, 6, "event 6 is missing", head=head)
    assert found(after=6) == missing
    for seq in (1, 3, 5):
        assert found(expect=(seq, events[seq - 1].hash)).ok
        assert found(expect=(seq, "f" * 64)) == services.Verification(
            False,
            seq - 1,
            events[seq - 2].hash if seq > 1 else "0" * 64,
            seq,
            "it is not the event that was recorded earlier",
            head=head,
        )
    assert found(expect=(6, "f" * 64)) == services.Verification(
        False, 5, events[4].hash, 6, "6 events were recorded earlier", head=head
    )


# --- heads ---


@pytest.mark.parametrize("change", ["count", "hash", "mac", "chain"])
def test_a_head_that_was_changed_does_not_verify(change: str) -> None:
    org, other = new_id(), new_id()
    write(org)
    write(other)
    heads = ChainHead.objects.filter(pk=str(org))
    head = heads.get()
    values: dict[str, Any] = {"count": 2, "hash": "f" * 64, "mac": "f" * 64}
    if change == "chain":
        twin = ChainHead.objects.get(pk=str(other))
        heads.update(mac=twin.mac)
    else:
        heads.update(**{change: values[change]})
    result = services.verify(org)
    assert (result.ok, result.broken_at, result.problem) == (False, 1, "the head's MAC does not verify")
    assert result.head_hash == head.hash
    # the chain goes on, and its head never verifies again
    write(org)
    assert not services.verify(org).ok
    assert services.verify(other).ok


def test_a_head_under_a_key_that_is_not_configured_names_the_key(settings: Any) -> None:
    org = new_id()
    settings.BYTEOR_AUDIT_MAC_KEYS = [("old", b"o" * 32)]
    write(org)
    settings.BYTEOR_AUDIT_MAC_KEYS = [("new", b"n" * 32), ("old", b"o" * 32)]
    assert services.verify(org).ok, "each configured key verifies"
    assert services.missing_mac_keys() == {}
    settings.BYTEOR_AUDIT_MAC_KEYS = [("new", b"n" * 32)]
    result = services.verify(org)
    assert result.problem == "the head's MAC is under the key-encryption key 'old', which is not configured"
    assert services.missing_mac_keys() == {"old": 1}
    with pytest.raises(Unavailable) as error:
        write(org)
    assert error.value.code == "key_encryption_key_missing"
    ChainHead.objects.filter(pk=str(org)).update(mac_key="")
    assert services.verify(org).problem == "the head's MAC does not verify"
    assert services.missing_mac_keys() == {}


def test_heads_are_moved_to_the_first_key_unless_they_do_not_verify(settings: Any) -> None:
    old, new = ("old", b"o" * 32), ("new", b"n" * 32)
    sound, changed, already = new_id(), new_id(), new_id()
    settings.BYTEOR_AUDIT_MAC_KEYS = [old]
    write(sound)
    write(changed)
    ChainHead.objects.filter(pk=str(changed)).update(count=7)
    settings.BYTEOR_AUDIT_MAC_KEYS = [new, old]
    write(already)
    unproved = {str(changed): "the head's MAC does not verify"}
    assert services.reseal(dry_run=True) == services.Resealed(1, unproved)
    assert ChainHead.objects.get(pk=str(sound)).mac_key == "old"
    assert services.reseal() == services.Resealed(1, unproved)
    assert {head.pk: head.mac_key for head in ChainHead.objects.exclude(pk="system")} == {
        str(sound): "new",
        str(changed): "old",
        str(already): "new",
    }
    settings.BYTEOR_AUDIT_MAC_KEYS = [new]
    assert services.verify(sound).ok
    write(sound)
    assert services.verify(sound).ok
    assert services.reseal() == services.Resealed(
        0, {str(changed): "the head's MAC is under the key-encryption key 'old', which is not configured"}
    )


# --- once an hour ---


def test_a_refusal_is_repeated_for_another_actor_action_target_or_reason_and_not_else() -> None:
    org, start = new_id(), dt.datetime(2026, 3, 4, 5, 0, tzinfo=dt.UTC)
    base: dict[str, Any] = {
        "organization_id": org,
        "action": "x.do",
        "actor": BOB,
        "target": "x:1",
        "reason": "role",
        "scope": {"organization_id": str(org)},
    }
    with time_machine.travel(start, tick=False) as traveller:
        changes: list[dict[str, Any]] = [
            {},
            {},
            {"target": "x:2"},
            {"reason": "state"},
            {"action": "x.undo"},
            {"actor": ActorRef("person", "c", "Carol")},
        ]
        for change in changes:
            services.record_denial(**base | change)
        rows = list(AuditEvent.objects.filter(chain=str(org)).order_by("seq"))
        assert [(r.actor_name, r.action, r.target, r.details) for r in rows] == [
            ("Bob", "x.do", "x:1", {"reason": "role"}),
            ("Bob", "x.do", "x:2", {"reason": "role"}),
            ("Bob", "x.do", "x:1", {"reason": "state"}),
            ("Bob", "x.undo", "x:1", {"reason": "role"}),
            ("Carol", "x.do", "x:1", {"reason": "role"}),
        ]
        assert {r.outcome for r in rows} == {"denied"}
        assert rows[0].resource_scope == {"organization_id": str(org)}
        traveller.shift(dt.timedelta(minutes=59, seconds=59))
        services.record_denial(**base)
        traveller.shift(dt.timedelta(seconds=1))
        services.record_denial(**base)
    last = AuditEvent.objects.filter(chain=str(org)).latest("seq")
    assert (last.seq, last.details) == (6, {"reason": "role", "suppressed": 2})


def test_with_any_target_one_refusal_stands_for_all() -> None:
    org = new_id()
    for target, reason in (("x:1", "a"), ("x:2", "b")):
        services.record_denial(
            organization_id=org, action="x.do", actor=BOB, target=target, reason=reason, scope={}, any_target=True
        )
    assert [e.target for e in AuditEvent.objects.filter(chain=str(org))] == ["x:1"]


def test_a_view_by_staff_is_recorded_once_for_each_target() -> None:
    org = new_id()
    for target in ("x:1", "x:1", "x:2"):
        services.record_view(organization_id=org, actor=BOB, target=target, scope={"organization_id": str(org)})
    rows = AuditEvent.objects.filter(chain=str(org)).order_by("seq")
    assert [(r.action, r.actor, r.target, r.outcome, r.details) for r in rows] == [
        ("staff.viewed", "person:b", "x:1", "allowed", {}),
        ("staff.viewed", "person:b", "x:2", "allowed", {}),
    ]
    assert rows[0].resource_scope == {"organization_id": str(org)}


def test_what_could_not_be_written_is_written_by_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    org = new_id()

    def fail(**_: Any) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(services, "record", fail)
        with pytest.raises(Unavailable):
            services.record_view(organization_id=org, actor=BOB, target="x:1")
    services.record_view(organization_id=org, actor=BOB, target="x:1")
    assert AuditEvent.objects.filter(chain=str(org)).count() == 1


def test_events_are_visible_to_admins_of_their_organization_and_to_platform_staff(tenant: Tenant) -> None:
    here, there = tenant.organization.pk, tenant.other_organization.pk
    write(here)
    write(there)

    def seen(person: User) -> set[uuid.UUID | None]:
        rows = AuditEvent.objects.visible_to(person_principal(person)).filter(action="x.done")
        return set(rows.values_list("organization_id", flat=True))

    assert seen(tenant.people["alice"]) == {here}
    assert seen(tenant.people["charlie"]) == {there}
    assert seen(tenant.people["vera"]) == set()
    assert seen(make_person("root", is_superuser=True)) == {here, there}


def test_a_key_that_was_never_seen_is_forgotten_without_an_error() -> None:
    memory = Coalescer()
    memory.forget("never seen")
    assert memory.admit("never seen") == 0
