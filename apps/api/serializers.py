"""Strict serializers: no unknown fields and no implicit type conversion."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from apps.core.errors import BadRequest, FieldError
from apps.core.ids import parse_id
from apps.core.json_equality import equal_json


class StrictSerializer(serializers.Serializer[Any]):
    """Input serializer that refuses unknown fields (`unknown_field`) and non-objects.

    With `ignores_unknown` it ignores unknown fields: for clients that may be newer than this server.
    """

    ignores_unknown = False

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, Mapping):
            problem = serializers.ErrorDetail("An object is expected.", code="not_an_object")
            raise serializers.ValidationError({"non_field_errors": [problem]})
        known = self.fields
        unknown = {
            str(name): [serializers.ErrorDetail("Unknown field.", code="unknown_field")]
            for name in data
            if name not in known and not self.ignores_unknown
        }
        try:
            value = super().to_internal_value(data)
        except serializers.ValidationError as error:
            if unknown and isinstance(error.detail, dict):
                raise serializers.ValidationError({**error.detail, **unknown}) from None
            raise
        if unknown:
            raise serializers.ValidationError(unknown)
        return value


class StrictCharField(serializers.CharField):
    """A JSON string; numbers and booleans are refused. At most 200 characters by default."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("max_length", 200)
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class EmptyInput(StrictSerializer):
    """An empty body or `{}`."""


class StrictIntegerField(serializers.IntegerField):
    """A JSON integer; strings, booleans and fractions are refused."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return int(super().to_internal_value(data))


class StrictBooleanField(serializers.BooleanField):
    """A JSON `true` or `false`; strings and numbers are refused."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class StrictChoiceField(serializers.ChoiceField):
    """One of a fixed set of strings. The error does not repeat the refused value."""

    default_error_messages = {"invalid_choice": "Not a valid choice."}

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid_choice")
        return str(super().to_internal_value(data))


class UUIDField(serializers.Field[Any, Any, Any, Any]):
    """A UUID in canonical text form."""

    default_error_messages = {"invalid": "A UUID is expected."}

    def to_internal_value(self, data: Any) -> Any:
        value = parse_id(data) if isinstance(data, str) else None
        if value is None:
            self.fail("invalid")
        return value


class JSONObjectField(serializers.Field[Any, Any, Any, Any]):
    """Any JSON object, unchanged."""

    default_error_messages = {"invalid": "An object is expected."}

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            self.fail("invalid")
        return data


class StringMapField(JSONObjectField):
    """An object of short strings: at most 64 entries, keys to 63 and values to 255 characters."""

    default_error_messages = {"invalid": "An object of at most 64 short strings is expected."}

    def to_internal_value(self, data: Any) -> dict[str, str]:
        value = super().to_internal_value(data)
        if len(value) > 64 or not all(
            isinstance(item, str) and len(item) <= 255 and 0 < len(key) <= 63 for key, item in value.items()
        ):
            self.fail("invalid")
        return {str(key): str(item) for key, item in value.items()}


@functools.cache
def _made_once(serializer: type[StrictSerializer], partial: bool) -> StrictSerializer:
    return serializer(partial=partial)


def validated_data(serializer: type[StrictSerializer], data: Any, *, partial: bool = False) -> dict[str, Any]:
    """Validate `data` with `serializer`. Raises DRF's ValidationError (answered as 400 with a pointer per error).

    The serializers are made once and shared by all threads, because copying their fields costs more than a validation, which
    keeps nothing in them.
    """
    if data is None:
        raise serializers.ValidationError(
            {"non_field_errors": [serializers.ErrorDetail("No data provided", code="null")]}
        )
    return dict(_made_once(serializer, partial).run_validation(data))


def read_only_members(shown: Mapping[str, object], serializer: type[StrictSerializer]) -> set[str]:
    """The members of a document that `serializer`, the input of its PUT, does not accept."""
    return set(shown) - set(_made_once(serializer, False).fields)


def without_read_only(
    body: Any,
    shown: Mapping[str, object],
    serializer: type[StrictSerializer],
    former: Mapping[str, object] | None = None,
) -> Any:
    """Return the body of a PUT without its read-only members, so that what GET answers (`shown`) can be sent back.

    Raises BadRequest `read_only` if one differs from what GET answers now and from what it answered before (`former`).
    """
    if not isinstance(body, dict):
        return body
    fixed = read_only_members(shown, serializer)
    wrong = [
        FieldError(f"/{name}", "read_only", "This field can't be set.")
        for name in body
        if name in fixed
        and not equal_json(body[name], shown[name])
        and not (former is not None and name in former and equal_json(body[name], former[name]))
    ]
    if wrong:
        raise BadRequest("A read-only field differs.", code="invalid_input", errors=wrong)
    return {name: value for name, value in body.items() if name not in fixed}
