"""Waiting threads are woken by a commit, on either database."""

import threading
import time

import pytest
from django.db import connection, transaction

from apps.core import wake
from apps.jobs.models import Chore

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def write(name: str) -> None:
    try:
        with transaction.atomic():
            Chore.objects.create(name=name)
            wake.notify("test")
    finally:
        connection.close()


def test_a_commit_elsewhere_wakes_at_once():
    woken: list[float] = []

    def waiting() -> None:
        try:
            if wake.wait("test", 10, ready=lambda: Chore.objects.filter(pk="there").exists()):
                woken.append(time.monotonic())
        finally:
            connection.close()

    thread = threading.Thread(target=waiting)
    thread.start()
    time.sleep(0.5)
    writer = threading.Thread(target=write, args=("there",))
    writer.start()
    writer.join()
    committed = time.monotonic()
    thread.join(timeout=11)
    assert woken
    assert woken[0] - committed < 1.0


def test_what_is_ready_already_does_not_wait_and_a_timeout_is_false():
    start = time.monotonic()
    assert wake.wait("test", 5, ready=lambda: True)
    assert time.monotonic() - start < 2
    assert not wake.wait("test", 0.2, ready=lambda: False)


def test_shutdown_ends_every_wait():
    threading.Timer(0.3, wake.stop_all).start()
    start = time.monotonic()
    try:
        assert not wake.wait("test", 10, ready=lambda: False)
        assert time.monotonic() - start < 3
        assert wake.stopping()
    finally:
        wake.close()
    assert not wake.stopping()
