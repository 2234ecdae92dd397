"""Calls registered for the end of a request."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from apps.core import context
from apps.core.context import RequestContext
from apps.core.db import outside_transaction


def test_one_that_fails_at_the_end_keeps_no_other_from_running_in_order() -> None:
    ran: list[str] = []

    def fail() -> None:
        ran.append("fails")
        raise RuntimeError("not written")

    with pytest.raises(RuntimeError, match="not written"), context.serving(RequestContext()):
        assert context.at_end(lambda: ran.append("first"))
        assert context.at_end(fail)
        assert context.at_end(lambda: ran.append("last"))
    assert ran == ["first", "fails", "last"]
    assert not context.at_end(lambda: None)


@pytest.mark.django_db
def test_what_must_last_is_written_though_the_callers_transaction_is_rolled_back() -> None:
    written: list[str] = []
    with context.serving(RequestContext()):
        outside_transaction(lambda: written.append("of its own"))
        assert written == (["of its own"] if not connection.in_atomic_block else [])
        with pytest.raises(RuntimeError), transaction.atomic():
            outside_transaction(lambda: written.append("after a refusal"))
            assert "after a refusal" not in written
            raise RuntimeError
    assert "after a refusal" in written
    outside_transaction(lambda: written.append("without a request"))
    assert written[-1] == "without a request"
