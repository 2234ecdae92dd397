"""Validation of bodies by serializers that all requests share."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rest_framework.exceptions import ValidationError

from apps.agents.api.serializers import EnrollmentTokenInput, HeartbeatInput
from apps.api.serializers import validated_data
from apps.pipelines.api import DraftInput


def heartbeat(number: int, **more: object) -> dict[str, object]:
    running = {"deployment_id": str(uuid.UUID(int=number)), "bundle_sha256": "ab" * 32, "sequence": number}
    return {"status": f"s{number}", "version": "1", "key_set_version": 1, "running": running, **more}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        heartbeat(1),
        heartbeat(1, running={}),
        heartbeat(1, health={"ok": 1}, metrics=[], status=None),
    ],
    ids=str,
)
def test_the_outcome_is_that_of_a_new_serializer(data: Any) -> None:
    new = HeartbeatInput(data=data)
    for _ in range(2):
        if new.is_valid():
            assert validated_data(HeartbeatInput, data) == new.validated_data
        else:
            with pytest.raises(ValidationError) as refused:
                validated_data(HeartbeatInput, data)
            assert refused.value.detail == new.errors
            assert refused.value.get_codes() == ValidationError(new.errors).get_codes()


def test_defaults_are_not_shared() -> None:
    first, second = (validated_data(EnrollmentTokenInput, {}) for _ in range(2))
    first["labels"]["site"] = "berlin"
    assert second["labels"] == {}
    assert validated_data(EnrollmentTokenInput, {})["labels"] == {}


def test_a_partial_validation_leaves_the_whole_one_strict() -> None:
    assert validated_data(DraftInput, {}, partial=True) == {}
    with pytest.raises(ValidationError):
        validated_data(DraftInput, {})


def test_requests_at_once_get_their_own_values() -> None:
    def validate(number: int) -> tuple[str, int]:
        given = validated_data(HeartbeatInput, heartbeat(number))
        return given["status"], given["running"]["sequence"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(validate, range(2000))) == [(f"s{number}", number) for number in range(2000)]
