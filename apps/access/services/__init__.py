"""Every write to people, memberships and personal tokens."""

from apps.access.services.accounts import (
    change_account_state,
    create_person_with_password,
    create_token,
    revoke_token,
)
from apps.access.services.members import accept_invitation, change_role, invitation_for, invite, remove_member

__all__ = [
    "accept_invitation",
    "change_account_state",
    "change_role",
    "create_person_with_password",
    "create_token",
    "invitation_for",
    "invite",
    "remove_member",
    "revoke_token",
]
