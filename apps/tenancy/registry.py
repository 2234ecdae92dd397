"""What upper rooms add to the life of a node, filled in their `ready()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from apps.core.actors import ActorRef
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope

Node = Organization | Project | Environment


class OnCreated(Protocol):
    """Called in the transaction that makes a node."""

    def __call__(self, *, actor: ActorRef, node: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """What of an environment people may set."""

    posture: str
    policy: dict[str, Any]
    max_in_flight_deployments: int
    retention_days: dict[str, Any]


class SettingsCheck(Protocol):
    """Called in the transaction that makes (`before` is None) or changes an environment.

    May raise to refuse, and may record. `explicit` names the settings (`policy.required_approvals` for members of an
    object) that the caller gave. Answers the settings to store: the given ones with what was left out filled in.
    """

    def __call__(
        self,
        *,
        actor: ActorRef,
        scope: Scope,
        before: EnvironmentSettings | None,
        after: EnvironmentSettings,
        explicit: frozenset[str],
    ) -> EnvironmentSettings: ...


DeletionGuard = Callable[[Scope], list[str]]
Purger = Callable[[Scope], bool]
OnDeleted = Callable[[Scope], None]

_created: dict[str, list[OnCreated]] = {"organization": [], "project": [], "environment": []}
_checks: list[SettingsCheck] = []
_guards: list[DeletionGuard] = []
_deleted: list[OnDeleted] = []
_purger: list[Purger] = []


def on_created(level: str, hook: OnCreated) -> None:
    """Run `hook(actor=…, node=…)` in the transaction that makes a node of `level`."""
    _created[level].append(hook)


def settings_check(check: SettingsCheck) -> None:
    """Let `check` judge and complete an environment's settings."""
    _checks.append(check)


def deletion_guard(guard: DeletionGuard) -> None:
    """`guard(scope)` names what stands in the way of deleting without force (such as a deployment in flight)."""
    _guards.append(guard)


def on_deleted(hook: OnDeleted) -> None:
    """Run `hook(scope)` in the transaction that writes the tombstone."""
    _deleted.append(hook)


def set_purger(purger: Purger) -> None:
    """`purger(scope)` runs after the tombstone is committed: True when the rows are gone, False when a chore goes on."""
    _purger[:] = [purger]


def created_hooks(level: str) -> list[OnCreated]:
    return _created[level]


def settings_checks() -> list[SettingsCheck]:
    return _checks


def deletion_guards() -> list[DeletionGuard]:
    return _guards


def deleted_hooks() -> list[OnDeleted]:
    return _deleted


def purge(scope: Scope) -> bool:
    """True when everything under `scope` is gone now; False when it goes in the background."""
    return _purger[0](scope) if _purger else False
