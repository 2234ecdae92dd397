"""The authentication backend of browser sessions."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.backends import ModelBackend

from apps.access.models import User, known_roles, with_roles


class PeopleBackend(ModelBackend):
    """Django's backend, which loads the person of a session with their roles in one query."""

    def get_user(self, user_id: Any) -> User | None:
        """Return the active user with this id, or None."""
        rows = list(with_roles(User.objects.filter(pk=user_id)))
        if not rows or not self.user_can_authenticate(rows[0]):
            return None
        user = rows[0]
        user.known_roles = known_roles(rows)
        return user
