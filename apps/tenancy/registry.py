"""Extension points of the tree, filled by other apps in their `ready()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from apps.core.actors import ActorRef
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope

Node = Organization | Project | Environment


class OnCreated(Protocol):
    """Callable run in the transaction that creates a node."""

    def __call__(self, *, actor: ActorRef, node: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """The editable settings of an environment."""

    posture: str
    policy: dict[str, Any]
    retention_days: dict[str, Any]
    max_in_flight_deployments: int = 4
    enrollments_per_minute: int = 20
    agent_upgrade_percent: int = 0


@dataclass(frozen=True, slots=True)
class PolicyField:
    """A member of an environment's policy, as a form field.

    An integer from `low` to `high`, or a boolean if these are None. `default` applies to a new environment. It is None
    if it depends on the posture; `help_text` then states it.
    """

    name: str
    label: str
    help_text: str
    low: int | None = None
    high: int | None = None
    default: int | bool | None = None

    @property
    def is_switch(self) -> bool:
        """Whether the field is a boolean."""
        return self.low is None


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """The creation (`before` is None) or a change of an environment.

    `explicit` names the settings (`policy.required_approvals` for members of an object) that the caller passed.
    """

    actor: ActorRef
    scope: Scope
    before: EnvironmentSettings | None
    after: EnvironmentSettings
    explicit: frozenset[str]


SettingsCheck = Callable[[SettingsChange], EnvironmentSettings]
DeletionGuard = Callable[[Scope], list[str]]
DeletionNote = Callable[[Scope], list[str]]
Purger = Callable[[Scope], bool]
OnDeleted = Callable[[Scope], None]

created_hooks: dict[str, list[OnCreated]] = {"organization": [], "project": [], "environment": []}
settings_checks: list[SettingsCheck] = []
deletion_guards: list[DeletionGuard] = []
deleted_hooks: list[OnDeleted] = []
deletion_notes: list[DeletionNote] = []
known_policy_fields: list[PolicyField] = []
_purger: list[Purger] = []


def on_created(level: str, hook: OnCreated) -> None:
    """Register `hook(actor=…, node=…)`, run in the transaction that creates a node of `level`."""
    created_hooks[level].append(hook)


def settings_check(check: SettingsCheck) -> None:
    """Register `check(change)`, run in the transaction that creates or changes an environment.

    It may raise to refuse, and may record events. It returns the settings to store: those of `change.after`, with
    defaults for the others.
    """
    settings_checks.append(check)


def deletion_guard(guard: DeletionGuard) -> None:
    """Register `guard(scope)`, which returns reasons not to delete without force, such as a deployment in progress."""
    deletion_guards.append(guard)


def deletion_note(note: DeletionNote) -> None:
    """Register `note(scope)`, which returns sentences for the confirmation page of a deletion."""
    deletion_notes.append(note)


def policy_fields(*fields: PolicyField) -> None:
    """Register the members of an environment's policy, in the order of the form."""
    known_policy_fields.extend(fields)


def on_deleted(hook: OnDeleted) -> None:
    """Register `hook(scope)`, run in the transaction that writes the tombstone."""
    deleted_hooks.append(hook)


def set_purger(purger: Purger) -> None:
    """Register `purger(scope)`, run after the tombstone is committed. It returns True if all rows are deleted, False if
    a background job continues.
    """
    _purger[:] = [purger]


def purge(scope: Scope) -> bool:
    """Run the purger. Returns True if everything under `scope` is deleted, False if a background job continues."""
    return _purger[0](scope) if _purger else False
