"""State machines that can't be bypassed.

A model declares its transitions with django-fsm, and `advance` is the only way to make one. Assignment, `save`,
`update`, `bulk_update` and a constructor with another status are refused in Python, and the `LegalMoves` trigger
(`apps.core.triggers`) refuses them in the database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from django.db import models
from django.utils.functional import cached_property
from django_fsm import FSMField, FSMFieldDescriptor, TransitionNotAllowed, can_proceed

from apps.core.errors import NotFound, StateConflict

_LOADING = "_guarded_loading"


class _StatusDescriptor(FSMFieldDescriptor):
    """Refuses every assignment except the first one and those that load the row."""

    def __set__(self, instance: Any, value: Any) -> None:
        name = self.field.name
        if name in instance.__dict__ and not instance.__dict__.get(_LOADING):
            raise AttributeError(f"{name} is changed by transitions only")
        self.field.set_state(instance, value)


class StatusField(FSMField):
    """A django-fsm field that can't be assigned. Add a check constraint with the legal values to the model."""

    descriptor_class = _StatusDescriptor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["protected"] = True
        kwargs.setdefault("max_length", 32)
        kwargs.setdefault("editable", False)
        super().__init__(*args, **kwargs)

    @cached_property
    def initial(self) -> str:
        """The status of a new row."""
        return str(self.get_default())


def status_field(model: type[models.Model]) -> StatusField | None:
    """Return the guarded field of `model`, or None."""
    return next((f for f in model._meta.concrete_fields if isinstance(f, StatusField)), None)


class GuardedQuerySet(models.QuerySet[Any]):
    """A queryset whose `update`, `bulk_update` and `bulk_create` refuse to set the status."""

    def update(self, **kwargs: Any) -> int:
        field = status_field(self.model)
        if field is not None and field.name in kwargs:
            raise AttributeError(f"{field.name} is changed by transitions only")
        return super().update(**kwargs)

    def bulk_create(self, objs: Iterable[Any], *args: Any, **kwargs: Any) -> list[Any]:
        rows = list(objs)
        for row in rows:
            _require_initial(row)
        if kwargs.get("update_conflicts"):
            field = status_field(self.model)
            if field is not None and field.name in (kwargs.get("update_fields") or ()):
                raise AttributeError(f"{field.name} is changed by transitions only")
        return super().bulk_create(rows, *args, **kwargs)


def _require_initial(instance: models.Model) -> None:
    field = status_field(type(instance))
    if field is not None and getattr(instance, field.name) != field.initial:
        raise AttributeError(f"a new {type(instance).__name__} begins as {field.initial}")


class GuardedModel(models.Model):
    """Base of a model with a `StatusField`. Saving never writes the status, and loading is not an assignment."""

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """As `Model.save`, but a new row must have the initial status, and an existing row's status is not written."""
        field = status_field(type(self))
        if field is not None:
            if self._state.adding:
                _require_initial(self)
            else:
                names = kwargs.get("update_fields")
                if names is None:
                    loaded = self.get_deferred_fields()
                    kwargs["update_fields"] = [
                        f.name
                        for f in self._meta.concrete_fields
                        if not f.primary_key and f.name != field.name and f.attname not in loaded
                    ]
                elif field.name in names:
                    raise AttributeError(f"{field.name} is changed by transitions only")
        super().save(*args, **kwargs)

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__[_LOADING] = True
        try:
            super().refresh_from_db(*args, **kwargs)
        finally:
            self.__dict__.pop(_LOADING, None)


@dataclass(frozen=True, slots=True)
class Move:
    """A transition that was made."""

    from_: str
    to: str


M = TypeVar("M", bound=models.Model)


def advance(instance: models.Model, transition: str, only_if: models.Q | None = None, **columns: Any) -> Move:
    """Make the transition `transition` of `instance`, and set `columns` in the same guarded UPDATE.

    Exactly one of two concurrent calls succeeds: the row changes only if its status is still the one that `instance`
    was loaded with, and `only_if` holds. Raises `StateConflict` if the transition is not legal or another call was first (`instance` then
    has the database's values), and `NotFound` if the row was deleted. Call it in one transaction with the audit event
    and the job.
    """
    field = status_field(type(instance))
    if field is None:
        raise TypeError(f"{type(instance).__name__} has no status field")
    method = getattr(instance, transition)
    from_ = str(getattr(instance, field.name))
    target = _target_of(type(instance), transition)
    if not can_proceed(method):
        raise StateConflict(from_, target, allowed_from(instance))
    try:
        method()
    except TransitionNotAllowed as error:
        raise StateConflict(from_, target, allowed_from(instance)) from error
    to = str(getattr(instance, field.name))
    rows: models.QuerySet[Any] = models.QuerySet(type(instance)).filter(pk=instance.pk, **{field.name: from_})
    if only_if is not None:
        rows = rows.filter(only_if)
    changed = rows.update(**{field.name: to}, **columns)
    if changed != 1:
        _reload(instance)
        now = str(getattr(instance, field.name))
        raise StateConflict(now, to, allowed_from(instance))
    for name, value in columns.items():
        if not hasattr(value, "resolve_expression"):
            setattr(instance, name, value)
    return Move(from_, to)


def _reload(instance: models.Model) -> None:
    try:
        instance.refresh_from_db()
    except type(instance).DoesNotExist as error:  # type: ignore[attr-defined]
        raise NotFound() from error


def _transitions(model: type[models.Model]) -> Iterable[Any]:
    field = status_field(model)
    if field is None:
        return ()
    return list(field.get_all_transitions(model))


def _target_of(model: type[models.Model], name: str) -> str:
    return next((str(t.target) for t in _transitions(model) if t.name == name), name)


def legal_moves(model: type[models.Model]) -> Mapping[str, frozenset[str]]:
    """Return {status: statuses that it may change to} of `model`, from the transitions in the code."""
    field = status_field(model)
    if field is None:
        raise TypeError(f"{model.__name__} has no status field")
    moves: dict[str, set[str]] = {str(value): set() for value, _ in field.choices or ()}
    for item in _transitions(model):
        moves.setdefault(str(item.source), set()).add(str(item.target))
        moves.setdefault(str(item.target), set())
    return {source: frozenset(targets) for source, targets in moves.items()}


def allowed_from(instance: models.Model) -> list[str]:
    """Return the statuses that `instance` may change to, sorted."""
    field = status_field(type(instance))
    if field is None:
        return []
    return sorted(legal_moves(type(instance)).get(str(getattr(instance, field.name)), frozenset()))
