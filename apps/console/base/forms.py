"""Forms of the console: a service's errors are shown next to the fields, with the submitted values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import ProhibitNullCharactersValidator
from django.db.models import Model

from apps.core.errors import FieldError, PreconditionFailed, ServiceError

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Any]
    _ModelChoiceField = forms.ModelChoiceField[Any]
else:
    _ModelForm = forms.ModelForm
    _ModelChoiceField = forms.ModelChoiceField

CHANGED_MEANWHILE = "Another user changed this after you opened it, so nothing was stored. Compare, then save again."


def _no_look(exclude: object = None) -> None:
    """Skip the model's constraints: the services check them with readable errors, a constraint only has a name."""


class ServiceForm(_ModelForm):
    """A form whose values a service validates when it writes.

    `refused` is the service's error for these values: the form is then invalid and shown again. The model's constraints are
    skipped, because the services check the same rules with readable errors.
    """

    refused: ServiceError | None = None

    def _post_clean(self) -> None:
        # skips validate_constraints; the database still enforces them
        self.instance.validate_constraints = _no_look
        super()._post_clean()  # type: ignore[misc]
        if self.refused is not None:
            self._show_refusal(self.refused)

    def _show_refusal(self, error: ServiceError) -> None:
        if isinstance(error, PreconditionFailed):
            self._show_what_is_stored()
            return
        if not error.errors:
            self.add_error(None, error.detail)
        for each in error.errors:
            self.add_error(*self._place_of(each))

    def _place_of(self, error: FieldError) -> tuple[str | None, str]:
        """The field that a JSON pointer names, and the error text; without such a field the text names the member."""
        parts = error.pointer.strip("/").split("/")
        for name in ("_".join(parts), parts[-1], parts[0]):
            if name in self.fields and name not in self.errors:
                return name, error.detail
        return None, f"{' '.join(parts).replace('_', ' ')}: {error.detail}"

    def _show_what_is_stored(self) -> None:
        """Add a conflict error, and the stored value at each field that differs."""
        self.add_error(None, CHANGED_MEANWHILE)
        for name in self.changed_data:
            if name == "expected_rev" or name not in self.fields:
                continue
            stored = self.get_initial_for_field(self.fields[name], name)
            self.add_error(name, f"Stored now: {'empty' if stored in (None, '') else shown(stored)}.")
        if "expected_rev" in self.fields:
            data = self.data.copy()  # type: ignore[attr-defined]
            data[self.add_prefix("expected_rev")] = str(self.instance.rev)
            self.data = data


def shown(value: object) -> str:
    """Format a stored value for display."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


class RevisedForm(ServiceForm):
    """A form for a row with a `rev`: it submits the `rev` it was opened with, so that concurrent edits are not overwritten."""

    expected_rev = forms.IntegerField(widget=forms.HiddenInput, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "expected_rev" in self.fields:
            self.initial["expected_rev"] = getattr(self.instance, "rev", None)

    @property
    def edited(self) -> set[str]:
        """The fields whose values differ from the stored row."""
        return set(self.changed_data) - {"expected_rev"}

    def rev_to_expect(self) -> int:
        """The `rev` that the form was opened with; the stored one if it was not submitted."""
        given = self.cleaned_data.get("expected_rev")
        return int(given) if given is not None else int(self.instance.rev)


class PathChoiceField(_ModelChoiceField):
    """A choice of projects or environments, labelled with their path."""

    def label_from_instance(self, obj: Model) -> str:
        return path_of(obj)


def path_of(node: Any) -> str:
    """The path of a project (`Acme / Orders`) or environment (`Orders / Staging`, without the organization)."""
    if hasattr(node, "project"):
        return f"{node.project.name} / {node.name}"
    if hasattr(node, "organization"):
        return f"{node.organization.name} / {node.name}"
    return str(node.name)


class DeletionForm(forms.Form):
    """Confirmation of a deletion: `{confirm, force}`.

    `confirm` is the slug of the row, where required; `force` also deletes what is in flight.
    """

    confirm = forms.CharField(required=False, validators=[ProhibitNullCharactersValidator()])
    force = forms.BooleanField(required=False)

    def __init__(self, *args: Any, slug: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.slug = slug
        if slug is None:
            del self.fields["confirm"]

    def clean_confirm(self) -> str:
        """Validate that the text is the slug."""
        given = str(self.cleaned_data["confirm"]).strip()
        if given != self.slug:
            raise ValidationError(f"The slug does not match. Type {self.slug} to delete it.")
        return given

    def clean_force(self) -> bool:
        """Accept `true` and the value of a ticked checkbox."""
        return bool(self.cleaned_data["force"])
