"""Hooks of other apps for changes of roles, registered in their `ready()`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

from django.db import transaction

OnRolesChanged = Callable[[uuid.UUID], None]

_hooks: list[OnRolesChanged] = []


def on_roles_changed(hook: OnRolesChanged) -> None:
    """Register `hook(organization_id)`, called after the commit of each change of roles in an organization."""
    _hooks.append(hook)


def roles_changed(organization_id: uuid.UUID) -> None:
    """Call the hooks after the current transaction commits. A hook that fails is logged and has no other effect."""
    for hook in _hooks:
        transaction.on_commit(partial(hook, organization_id), robust=True)
