"""Whatever answers the agent gets, from a faulty control plane or a proxy in between: the next honest one is followed.

The real agent, packed as it is served, runs behind a proxy that answers in the control plane's place while it has an answer
ready. `BYTEOR_HOSTILE_EXAMPLES` makes it longer and adds answers that trickle, each of which holds one exchange to its deadline.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.agent.fake_control_plane import ControlPlane
from tests.runtime.agent.host import Host
from tests.runtime.agent.waiting import until
from tests.runtime.making import DEPLOYMENT, Maker

EXAMPLES = int(os.environ.get("BYTEOR_HOSTILE_EXAMPLES", "0"))
pytestmark = [pytest.mark.alone, pytest.mark.timeout(600 + 90 * EXAMPLES)]


class Proxy:
    """Hands connections on to `plane`; while `answers` holds something, each gets the next of it instead."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.answers: deque[tuple[bytes, float]] = deque()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(one,), daemon=True).start()

    def _one(self, one: socket.socket) -> None:
        with one:
            try:
                request = self._request(one)
                try:
                    data, pause = self.answers.popleft()
                except IndexError:
                    self._hand_on(one, request)
                    return
                if not pause:
                    one.sendall(data)
                    return
                for at in range(len(data)):
                    one.sendall(data[at : at + 1])
                    time.sleep(pause)
            except OSError:
                return

    def _request(self, one: socket.socket) -> bytes:
        got = b""
        while b"\r\n\r\n" not in got:
            piece = one.recv(65536)
            if not piece:
                return got
            got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        lines = [line.lower() for line in head.split(b"\r\n")]
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
        while len(body) < length and (piece := one.recv(65536)):
            body += piece
        return head.replace(b"HTTP/1.1", b"HTTP/1.0", 1) + b"\r\n\r\n" + body

    def _hand_on(self, one: socket.socket, request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self._plane.port), timeout=60) as other:
            other.sendall(request)
            while piece := other.recv(65536):
                one.sendall(piece)

    def close(self) -> None:
        self._listening.close()


SLOW = "3600" if EXAMPLES else "5"  # a heartbeat asked for so seldom comes each minute all the same
odd_numbers = st.sampled_from(
    [
        "0",
        "-1",
        "1e999",
        "NaN",
        "Infinity",
        "99999999999",
        "1" * 5000,
        SLOW,
        "true",
        "null",
        '"7"',
        "[]",
        "2147483647",
    ]
)
odd_texts = st.sampled_from(
    [
        json.dumps(text)
        for text in ("x" * 35 + " ", "\n2026 forged", "\ud800", "\x00", "../" * 12, "é" * 36, "", DEPLOYMENT)
    ]
) | st.text(max_size=40).map(json.dumps)
odd_values = odd_numbers | odd_texts | st.just("{}") | st.just("[" * 3000 + "]" * 3000)


@st.composite
def answers_in_place(draw: st.DrawFn) -> bytes:
    """A body as of an answer, each member of it anything."""
    names = ("directive_seq", "for_deployment_id", "deployment_id", "bundle_sha256", "sequence", "v")
    plain = ",".join(f'"{name}":{draw(odd_values)}' for name in names)
    envelope = draw(
        odd_values | st.just('{"payload":"e30=","payloadType":"x","signatures":[{"keyid":"k","sig":"e30="}]}')
    )
    members = [f'"desired":{{"envelope":{envelope},"directive":{{{plain}}}}}']
    for name in ("heartbeat_seconds", "key_set_version", "code", "detail", "envelopes", "api_key"):
        members.append(f'"{name}":{draw(odd_values)}')
    return ("{" + ",".join(draw(st.permutations(members))) + "}").encode("utf-8", "surrogatepass")


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """The bytes of an answer."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    status = draw(st.sampled_from([100, 101, 200, 200, 200, 204, 206, 301, 302, 304, 400, 403, 404, 408, 409, 410, 422, 429, 500,
                                   502, 503, 599, 999]))  # fmt: skip
    body = draw(
        answers_in_place()
        | st.binary(max_size=100)
        | st.sampled_from([b"[" * 100_000, b"{}", b"null", b" " * 3_000_000])
    )
    odd = st.sampled_from(
        ["0", "1", "-1", "²".encode("latin-1").decode("latin-1"), "1.5", "soon", "99999999999999999999"]
    )
    headers = {
        "Content-Length": draw(st.just(str(len(body))) | st.just(str(len(body))) | odd),
        "Retry-After": draw(st.sampled_from(["0", "1", "-5", "²", "x", "1e3"])),
        "Date": draw(
            st.sampled_from(["", "Thu, 01 Jan 1970 00:00:00 GMT", "99999", "Mon, 31 Feb 99999 25:61:61 +9999"])
        ),
        "Location": "http://127.0.0.1:1/",
    }
    if draw(st.integers(0, 5)) == 0:
        del headers["Content-Length"]
        headers["Transfer-Encoding"] = draw(st.sampled_from(["chunked", "gzip, chunked", "x"]))
        body = draw(st.sampled_from([b"-1\r\n", b"ffffffffffff\r\nx", b"1\r\nx\r\n", b"zz\r\n", b"0\r\n\r\n"]))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode("latin-1") + body


trickled = st.tuples(hostile(), st.sampled_from([0.0] * 9 + [0.4])) if EXAMPLES else st.tuples(hostile(), st.just(0.0))


class Fleet:
    """The one host, its control plane and the proxy between them; `sequence` grows with each thing that is deployed."""

    def __init__(self, folder: Path) -> None:
        self.plane = ControlPlane(Maker())
        self.plane.start()
        self.proxy = Proxy(self.plane)
        self.host = Host(folder, self.plane)
        direct = self.plane.environment_url
        url = direct.replace(f":{self.plane.port}/", f":{self.proxy.port}/")
        command = self.host.command
        self.host.command = lambda *more: command(*(url if word == direct else word for word in more))  # type: ignore[method-assign]
        self.sequence = 1000
        self.host.start()

    def deploys(self) -> None:
        """What is deployed now is fetched, verified, run and reported."""
        self.sequence += 1
        bundle = self.plane.maker.bundle("secret:drop", sequence=self.sequence)
        self.plane.reports.clear()
        self.plane.offer(self.plane.maker.directive(bundle, self.sequence), bundle.archive)

        def activated() -> bool:
            assert self.host.process is not None
            assert self.host.process.poll() is None, self.host.log()[-2000:]
            return any(r["status"] == "activated" and r["sequence"] == self.sequence for r in self.plane.reports)

        until(activated, 90)

    def close(self) -> None:
        self.host.stop()
        self.proxy.close()
        self.plane.stop()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


@given(answers=st.lists(trickled, min_size=3, max_size=12))
@settings(max_examples=EXAMPLES or 4, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_answer_ends_blocks_or_steers_the_agent_beyond_the_next_honest_one(
    fleet: Fleet, answers: list[tuple[bytes, float]]
) -> None:
    if fleet.sequence == 1000:
        fleet.deploys()
    fleet.proxy.answers.extend(answers)
    # what the agent asks meanwhile (heartbeats each second, polls) is answered by these
    until(lambda: len(fleet.proxy.answers) < len(answers), 60)
    time.sleep(1.5)
    fleet.proxy.answers.clear()
    fleet.deploys()
    assert "forged" not in [line[:6] for line in fleet.host.log().splitlines()]
    assert fleet.host.feed() == {"n": fleet.host.fed, "name": "ann"}


@pytest.mark.parametrize(
    "body",
    [
        {
            "desired": {"envelope": {}, "directive": {"for_deployment_id": "x" * 35 + " "}},
            "heartbeat_seconds": int(SLOW),
        },
        {"desired": {"envelope": {}, "directive": {"for_deployment_id": DEPLOYMENT}}, "key_set_version": 2**31 - 1},
    ],
)
def test_the_answers_that_stopped_it_once_do_so_no_more(fleet: Fleet, body: dict[str, Any]) -> None:
    fleet.deploys()
    data = json.dumps(body).encode()
    for head in ("200 OK", "503 x\r\nRetry-After: 99999999999"):
        fleet.proxy.answers.append((f"HTTP/1.1 {head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data, 0.0))
    until(lambda: not fleet.proxy.answers)
    beats = len(fleet.plane.beats)
    until(lambda: len(fleet.plane.beats) > beats, 75)
    fleet.deploys()
