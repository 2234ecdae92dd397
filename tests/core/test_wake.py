"""A commit wakes waiting threads, on either database."""

import socket
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
            if wake.wait("test", 60, ready=lambda: Chore.objects.filter(pk="there").exists()):
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
    thread.join(timeout=61)
    assert woken
    assert woken[0] - committed < 20


def test_a_ready_condition_does_not_wait_and_a_timeout_is_false():
    start = time.monotonic()
    assert wake.wait("test", 60, ready=lambda: True)
    assert time.monotonic() - start < 20
    assert not wake.wait("test", 0.2, ready=lambda: False)


def test_nothing_is_kept_of_a_channel_that_was_only_asked_about():
    assert wake.ticket("asked about") == wake.ticket("asked about")
    assert not wake.wait("asked about", 0.01)
    assert "asked about" not in wake._current_listener().counts


def test_a_bounded_number_of_channels_is_remembered_and_no_notification_is_missed(monkeypatch):
    monkeypatch.setattr(wake, "MOST_CHANNELS", 3)
    listener = wake._current_listener()
    channels = [f"agent-{n}" for n in range(50)]
    for times in range(4):
        for channel in channels:
            seen = wake.ticket(channel)
            others = {name: wake.ticket(name) for name in channels}
            listener.publish(channel)
            assert wake.ticket(channel) != seen
            for name in channels[: times * 10]:
                listener.publish(name)
                assert wake.ticket(name) != others[name]
            assert len(listener.counts) <= 3


def test_shutdown_ends_every_wait():
    threading.Timer(0.3, wake.stop_all).start()
    start = time.monotonic()
    try:
        assert not wake.wait("test", 60, ready=lambda: False)
        assert time.monotonic() - start < 20
        assert wake.stopping()
    finally:
        wake.close()
    assert not wake.stopping()


def test_a_listener_does_not_wait_forever_for_a_server_that_accepts_and_sends_nothing(monkeypatch):
    """The host accepts connections but its database hangs: the listener tries again instead of blocking."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite is a file")
    monkeypatch.setattr(wake, "CONNECT_SECONDS", 2)
    ended: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        listener = object.__new__(wake._Listener)
        listener.parameters = {"host": "127.0.0.1", "port": silent.getsockname()[1], "dbname": "any"}

        def listen() -> None:
            try:
                listener._listen_postgres()
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        thread.join(timeout=20)
    assert [type(error).__name__ for error in ended] == ["ConnectionTimeout"]
