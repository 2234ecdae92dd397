"""The audit chain proves what happened and detects later changes."""

import json

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction

from apps.audit import services
from apps.audit.models import AuditEvent, ChainHead
from apps.core.actors import ActorRef
from apps.core.errors import Unavailable
from apps.core.ids import new_id
from apps.core.triggers import AppendOnly
from tests.support import in_threads

BOB = ActorRef("person", "b", "Bob")


def write(organization_id, n=1):
    for i in range(n):
        services.record(organization_id=organization_id, action="x.done", actor=BOB, target="x:1", details={"i": i})


@pytest.fixture
def tampering(transactional_db):
    """Drop the triggers, as an attacker with the database's own password could."""

    def run(statement: str, *params) -> None:
        operation = AppendOnly("audit_auditevent")
        with connection.cursor() as cursor:
            for text in operation.drop(connection.vendor):
                cursor.execute(text)
            try:
                cursor.execute(statement, params)
            finally:
                for text in operation.create(connection.vendor):
                    cursor.execute(text)

    return run


@pytest.mark.postgres
def test_the_database_refuses_to_change_or_delete_an_event(transactional_db):
    write(new_id())
    for attempt in (lambda: AuditEvent.objects.update(action="y"), lambda: AuditEvent.objects.all().delete()):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            attempt()
    assert AuditEvent.objects.get().action == "x.done"


def test_an_untouched_chain_verifies(db):
    org = new_id()
    write(org, 5)
    write(new_id(), 2)
    result = services.verify(org)
    assert (result.ok, result.events) == (True, 5)


CHANGED, UNLINKED = "its content was changed", "does not link to the event before it"


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("statement", "broken_at", "problem"),
    [
        ("UPDATE audit_auditevent SET actor_name = 'Mallory' WHERE seq = 3", 3, CHANGED),
        ("UPDATE audit_auditevent SET hash = previous_hash WHERE seq = 3", 3, CHANGED),
        ("UPDATE audit_auditevent SET previous_hash = hash WHERE seq = 3", 3, UNLINKED),
        ("DELETE FROM audit_auditevent WHERE seq = 1", 1, "event 1 is missing"),
        ("DELETE FROM audit_auditevent WHERE seq = 2", 2, "event 2 is missing"),
        ("DELETE FROM audit_auditevent WHERE seq = 5", 5, "event 5 is missing"),
        ("UPDATE audit_auditevent SET seq = 9 WHERE seq = 5", 5, "event 5 is missing"),
    ],
)
def test_tampering_names_the_first_broken_link(tampering, statement, broken_at, problem):
    org = new_id()
    write(org, 5)
    sound = AuditEvent.objects.filter(chain=str(org), seq=broken_at - 1).values_list("hash", flat=True).first()
    tampering(statement)
    result = services.verify(org)
    assert (result.ok, result.broken_at, result.problem) == (False, broken_at, problem)
    assert (result.events, result.head_hash) == (broken_at - 1, sound or services.GENESIS)


def hashed_anew(seq, **changes):
    """The statement that makes event `seq` another one, with the right hash for its new content."""
    event = AuditEvent.objects.get(seq=seq)
    for name, value in changes.items():
        setattr(event, name, value)
    columns = [*changes, "hash"]
    values = [*changes.values(), services._hash(event)]
    return f"UPDATE audit_auditevent SET {', '.join(f'{c} = %s' for c in columns)} WHERE seq = {seq}", *values


def test_an_event_that_was_replaced_with_its_hash_no_longer_links_to_the_next(tampering):
    org = new_id()
    write(org, 5)
    tampering(*hashed_anew(3, actor_name="Mallory"))
    assert (services.verify(org).broken_at, services.verify(org).problem) == (4, UNLINKED)
    tampering(*hashed_anew(5, actor_name="Mallory"))
    found = services.verify(org, after=4)
    assert (found.broken_at, found.problem) == (6, "the head counts 5 events"), "the last one is held by the head"


def test_two_events_that_changed_places_no_longer_link(tampering):
    org = new_id()
    write(org, 5)
    for before, after in ((2, 99), (3, 2), (99, 3)):
        tampering(f"UPDATE audit_auditevent SET seq = {after} WHERE seq = {before}")
    assert (services.verify(org).broken_at, services.verify(org).problem) == (2, UNLINKED)


def insert_after(org, seq):
    """One more event, well linked to event `seq`."""
    event = AuditEvent.objects.get(chain=str(org), seq=seq)
    event.id, event.seq, event.previous_hash = new_id(), seq + 1, event.hash
    event.hash = services._hash(event)
    event.save(force_insert=True)


def test_an_inserted_event_is_found_in_the_middle_and_at_the_end(tampering):
    org = new_id()
    write(org, 5)
    insert_after(org, 5)
    found = services.verify(org)
    assert (found.ok, found.broken_at, found.problem) == (False, 6, "the head does not count it")
    tampering("DELETE FROM audit_auditevent WHERE seq = 6")
    assert services.verify(org).ok
    tampering("UPDATE audit_auditevent SET seq = 6 WHERE seq = 5")
    insert_after(org, 4)
    found = services.verify(org)
    assert (found.ok, found.broken_at, found.problem) == (False, 6, "the head counts 5 events")


def test_a_truncated_chain_with_a_rewound_head_fails_by_the_mac(tampering):
    org = new_id()
    write(org, 3)
    keep = AuditEvent.objects.get(chain=str(org), seq=2)
    tampering("DELETE FROM audit_auditevent WHERE seq = 3")
    ChainHead.objects.filter(pk=str(org)).update(count=2, hash=keep.hash)
    assert "MAC" in services.verify(org).problem


@pytest.mark.postgres
def test_events_written_after_tampering_do_not_hide_it(tampering):
    org = new_id()
    write(org, 3)
    keep = AuditEvent.objects.get(chain=str(org), seq=2)
    tampering("DELETE FROM audit_auditevent WHERE seq = 3")
    ChainHead.objects.filter(pk=str(org)).update(count=2, hash=keep.hash)
    write(org, 2)
    assert "MAC" in services.verify(org).problem
    assert AuditEvent.objects.filter(chain=str(org)).count() == 4


def test_a_chain_whose_key_is_not_configured_refuses_events_rather_than_lose_its_mac(db, settings):
    org = new_id()
    write(org, 1)
    keys = settings.BYTEOR_AUDIT_MAC_KEYS
    settings.BYTEOR_AUDIT_MAC_KEYS = [("another", b"x" * 32)]
    with pytest.raises(Unavailable, match="not configured"):
        write(org)
    settings.BYTEOR_AUDIT_MAC_KEYS = keys
    write(org)
    assert services.verify(org).as_dict() | {"head_hash": ""} == {
        "ok": True, "events": 2, "head_hash": "", "broken_at": None, "problem": "",
    }  # fmt: skip


@pytest.mark.postgres
def test_concurrent_writers_make_one_unbroken_chain(transactional_db):
    org = new_id()
    results = in_threads(*([lambda: write(org, 10)] * 8))
    assert [r for r in results if r is not None] == []
    result = services.verify(org)
    assert (result.ok, result.events) == (True, 80)


def test_a_failed_transaction_leaves_no_event(transactional_db):
    org = new_id()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        write(org)
        raise ZeroDivisionError
    assert services.verify(org).events == 0


def test_the_command_exports_json_lines_that_hash_to_themselves(db, capsys):
    org = new_id()
    write(org, 2)
    call_command("audit", "export", "--org-id", str(org))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["seq"] for line in lines] == [1, 2]
    assert lines[1]["previous_hash"] == lines[0]["hash"]
    call_command("audit", "verify", "--org-id", str(org))
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_denials_of_outsiders_are_coalesced_on_the_system_chain(tenant):
    charlie = tenant.caller("charlie")
    for _ in range(3):
        assert charlie.get(tenant.path()).status_code == 404
    denied = AuditEvent.objects.filter(chain="system", outcome="denied")
    assert denied.count() == 1
    vera = tenant.caller("vera")
    assert vera.patch(tenant.path(), {"name": "x"}).status_code == 403
    assert AuditEvent.objects.filter(organization_id=tenant.organization.pk, outcome="denied").count() == 1
