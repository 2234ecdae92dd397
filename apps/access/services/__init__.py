"""Every write to people, memberships and personal tokens.

`sign_in` verifies passwords and begins sessions. `accounts` creates people, passwords and tokens. `members` invites and
accepts. `resets` sets a password by a link. `proofs` confirms addresses. `grants` keeps the history of roles. `mail`
sends links.
"""

from apps.access.services.accounts import (
    change_account_state,
    create_person_with_password,
    create_token,
    first_password,
    revoke_token,
)
from apps.access.services.members import (
    accept_as_new_person,
    change_role,
    invitation_for,
    invitations_of,
    invite,
    join,
    join_without_link,
    remove_member,
)
from apps.access.services.resets import make_reset_link, open_reset, request_password_reset, reset_password

__all__ = [
    "accept_as_new_person",
    "change_account_state",
    "change_role",
    "create_person_with_password",
    "create_token",
    "first_password",
    "invitation_for",
    "invitations_of",
    "invite",
    "join",
    "join_without_link",
    "make_reset_link",
    "open_reset",
    "remove_member",
    "request_password_reset",
    "reset_password",
    "revoke_token",
]
