"""Waiting polls under the real server: they end when it does, and never take the last thread."""

from __future__ import annotations

import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.world import Api, until
from tests.web import Server

pytestmark = pytest.mark.faults


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.close()


def poll(caller: Api, path: str, seq: int, *, wait: int) -> tuple[int, bool]:
    """The status of one poll, and whether it was sent away because two others of its agent wait."""
    address = f"{caller.base}{path}/deployment?wait={wait}&after={seq}"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {caller.token}"})
    with urllib.request.urlopen(request, timeout=40) as answer:
        return answer.status, answer.headers["Retry-After"] is not None


def test_waits_end_at_once_when_the_server_stops(server: Server) -> None:
    agents = [server.agent() for _ in range(3)]
    answers: list[int] = []

    def wait(caller: Api, path: str, seq: int) -> None:
        while True:
            status, sent_away = poll(caller, path, seq, wait=25)
            if not sent_away:
                answers.append(status)
                return
            time.sleep(0.2)

    threads = [threading.Thread(target=wait, args=agent) for agent in agents for _ in range(2)]
    for thread in threads:
        thread.start()
    # a poll that finds no place shows that both others wait
    until(lambda: all(poll(*agent, wait=1)[1] for agent in agents), 60)
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(20)
    server.process.wait(20)
    assert answers == [204] * 6
    assert time.monotonic() - start < 10, "of the 25 that they would have waited"


def test_people_are_served_while_more_agents_poll_than_there_are_threads(server: Server) -> None:
    agents = [server.agent() for _ in range(12)]
    stop = threading.Event()

    def poll_on(caller: Api, path: str, seq: int) -> None:
        while not stop.is_set():
            assert caller.call("GET", f"{path}/deployment?wait=25&after={seq}")[0] == 204
            stop.wait(0.2)

    threads = [threading.Thread(target=poll_on, args=agent) for agent in agents]
    for thread in threads:
        thread.start()
    time.sleep(1)
    slowest = 0.0
    for _ in range(10):
        start = time.monotonic()
        assert len(server.owner.get(f"{server.env}/agents")["results"]) == 12
        slowest = max(slowest, time.monotonic() - start)
    stop.set()
    server.process.send_signal(signal.SIGTERM)  # which ends the polls
    for thread in threads:
        thread.join(20)
    assert slowest < 20, "a server without a free thread answers when a poll ends, after 25"
