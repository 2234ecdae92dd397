"""Documents are made of rows: attributes of the same names, ids and times as text."""

from __future__ import annotations

import datetime as dt
import uuid
from types import SimpleNamespace
from typing import NotRequired, TypedDict

import pytest

from apps.api.documents import document


class Base(TypedDict):
    id: str
    at: str | None


class Whole(Base):
    name: str
    long: NotRequired[str]


MOMENT = dt.datetime(2026, 11, 26, 8, 0, tzinfo=dt.UTC)


def test_members_are_the_rows_attributes_and_those_given_instead() -> None:
    row = SimpleNamespace(id=uuid.UUID(int=7), at=MOMENT, name="a", long="b", secret="c")
    text = str(uuid.UUID(int=7))
    assert document(Whole, row) == {"id": text, "at": "2026-11-26T08:00:00.000Z", "name": "a", "long": "b"}
    assert document(Whole, row, at=None, name=uuid.UUID(int=7)) == {"id": text, "at": None, "name": text, "long": "b"}


def test_what_is_left_out_is_not_read() -> None:
    row = SimpleNamespace(id=1, at=None, name="a")
    assert document(Whole, row, without=["long"]) == {"id": 1, "at": None, "name": "a"}
    with pytest.raises(AttributeError):
        document(Whole, row)
