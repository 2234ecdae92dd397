"""Ids contain their creation time."""

import datetime as dt

from apps.core import clock
from apps.core.ids import first_id_at, new_id


def test_an_id_lies_between_the_first_ids_of_the_moments_around_it():
    before = clock.now() - dt.timedelta(milliseconds=2)
    made = new_id()
    after = clock.now() + dt.timedelta(milliseconds=2)
    assert first_id_at(before) < made < first_id_at(after)


def test_moments_that_no_id_can_name_are_the_ends():
    assert first_id_at(dt.datetime(1900, 1, 1, tzinfo=dt.UTC)).int == 0
    assert first_id_at(dt.datetime(9999, 1, 1, tzinfo=dt.UTC)).int < 2**128
