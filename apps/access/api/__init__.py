"""The API of people and the tree, and the view bases that every room's API stands on."""

from apps.access.api.base import PersonView, ScopedView

__all__ = ["PersonView", "ScopedView"]
