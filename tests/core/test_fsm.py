"""The guarded status field, tested with a small state machine."""

import pytest
from django.db import models
from django_fsm import transition

from apps.core.errors import StateConflict
from apps.core.fsm import GuardedModel, GuardedQuerySet, StatusField, advance, allowed_from, legal_moves


class Lamp(GuardedModel):
    """A tiny machine: off → on → off, and on → broken."""

    status = StatusField(default="off", choices=[("off", "off"), ("on", "on"), ("broken", "broken")])
    note = models.CharField(max_length=20, default="")
    objects = GuardedQuerySet.as_manager()

    class Meta:
        app_label = "core"

    @transition(field="status", source=["off"], target="on")
    def switch_on(self) -> None:
        """Switch on."""

    @transition(field="status", source=["on"], target="off")
    def switch_off(self) -> None:
        """Switch off."""

    @transition(field="status", source=["on"], target="broken")
    def burn_out(self) -> None:
        """The end."""


@pytest.fixture
def lamp(transactional_db):
    # the table exists: an app without migrations gets its tables with the test database
    return Lamp.objects.create()


def test_legal_moves_are_read_from_the_transitions():
    assert legal_moves(Lamp) == {"off": {"on"}, "on": {"off", "broken"}, "broken": frozenset()}


def test_a_move_writes_status_and_columns_at_once(lamp):
    move = advance(lamp, "switch_on", note="bright")
    assert (move.from_, move.to) == ("off", "on")
    fresh = Lamp.objects.get()
    assert (fresh.status, fresh.note, lamp.note) == ("on", "bright", "bright")


def test_an_illegal_move_raises_and_changes_nothing(lamp):
    with pytest.raises(StateConflict) as caught:
        advance(lamp, "burn_out")
    assert caught.value.extra == {"from": "off", "to": "broken", "allowed": ["on"]}
    assert Lamp.objects.get().status == "off"


def test_the_second_of_two_calls_with_a_stale_row_fails(lamp):
    first, second = Lamp.objects.get(), Lamp.objects.get()
    advance(first, "switch_on")
    with pytest.raises(StateConflict) as caught:
        advance(second, "switch_on")
    assert caught.value.from_ == "on"
    assert second.status == "on"
    assert allowed_from(second) == ["broken", "off"]


def test_a_move_with_a_condition_that_the_row_does_not_meet_fails_and_changes_nothing(lamp):
    with pytest.raises(StateConflict) as caught:
        advance(lamp, "switch_on", only_if=models.Q(note="mine"), note="bright")
    assert (caught.value.from_, lamp.status) == ("off", "off")
    Lamp.objects.update(note="mine")
    advance(lamp, "switch_on", only_if=models.Q(note="mine"), note="bright")
    fresh = Lamp.objects.get()
    assert (fresh.status, fresh.note) == ("on", "bright")


def test_assignment_update_and_constructor_are_refused(lamp):
    with pytest.raises(AttributeError):
        lamp.status = "on"
    with pytest.raises(AttributeError):
        Lamp.objects.update(status="on")
    with pytest.raises(AttributeError):
        Lamp.objects.bulk_update([lamp], ["status"])
    with pytest.raises(AttributeError):
        Lamp(status="on").save()
    with pytest.raises(AttributeError):
        Lamp.objects.bulk_create([Lamp(status="on")])
    assert [row.status for row in Lamp.objects.all()] == ["off"]


def test_saving_a_stale_row_does_not_undo_a_move(lamp):
    stale = Lamp.objects.get()
    advance(lamp, "switch_on")
    stale.note = "late"
    stale.save()
    fresh = Lamp.objects.get()
    assert (fresh.status, fresh.note) == ("on", "late")


def test_refresh_loads_without_being_an_assignment(lamp):
    stale = Lamp.objects.get()
    advance(lamp, "switch_on")
    stale.refresh_from_db()
    assert stale.status == "on"
    with pytest.raises(AttributeError):
        stale.status = "off"


def test_a_missing_row_at_refresh_leaves_the_guard_on(lamp):
    deleted = Lamp.objects.get()
    Lamp.objects.all().delete()
    with pytest.raises(Lamp.DoesNotExist):
        deleted.refresh_from_db()
    with pytest.raises(AttributeError):
        deleted.status = "on"
