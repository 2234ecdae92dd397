"""The HTTP ingress as senders, browsers and slow peers meet it: what comes out is whole records, or nothing and a count."""

from __future__ import annotations

import http.client
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from apps.runtime.agent.limits import Limits
from apps.runtime.agent.pipeline import Pipeline
from apps.runtime.agent.pipeline.listen import MAX_CONNECTIONS
from apps.runtime.agent.state import State
from apps.runtime.bundle import read_bundle, verify_bundle
from tests.lines import json_lines
from tests.runtime.making import Maker, acting
from tests.services import free_port

pytestmark = pytest.mark.timeout(240)


class Ingress:
    """A pipeline that listens and writes to a file."""

    def __init__(self, folder: Path, op: str = "dataguard_check", host: str = "127.0.0.1", egress: Any = None) -> None:
        self.host, self.port = host, free_port(host)
        self.data = folder / "data"
        self.data.mkdir()
        config = {
            "adapters": {
                "ingress": {"type": "http", "host": host, "port": self.port, "path": "/in"},
                "egress": egress or {"type": "file", "path": "out.jsonl"},
            },
            "stages": {"s0": {"schema": {"required": ["n"]}}} if op == "dataguard_check" else {},
        }
        maker = Maker()
        bundle = verify_bundle(read_bundle(maker.bundle(spec=acting(op), config=config).archive), keys=maker.keys)
        allowed = [egress["url"]] if egress else []
        state = State(folder / "state", lock=False)
        self.pipeline = Pipeline(bundle, Limits.given(self.data, egress=allowed), state, lambda text: None)
        self.pipeline.start()

    def lines(self) -> list[bytes]:
        path = self.data / "out.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as out:
            return out.readlines()  # by line feeds alone: a carriage return is a character like any other

    def codes(self) -> dict[str, int]:
        stages = self.pipeline.metrics()["stages"]
        return {code: n for stage in stages.values() for code, n in stage["codes"].items()}

    def post(self, body: bytes, path: str = "/in", **headers: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        """What is answered to these bytes, until it hangs up."""
        with socket.create_connection((self.host, self.port), timeout=30) as one:
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
            got = b""
            while piece := one.recv(65536):
                got += piece
            return got


@pytest.fixture
def ingress(tmp_path: Path) -> Iterator[Ingress]:
    made = Ingress(tmp_path)
    yield made
    made.pipeline.stop()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content_Encoding": "gzip"}, 415, "content_coding"),
        ({"Content_Encoding": "identity, br"}, 415, "content_coding"),
        ({"Content_Type": "application/x-ndjson"}, 415, "one_record_a_request"),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415, "one_record_a_request"),
        ({"Origin": "https://evil.example"}, 403, "from_a_browser"),
        ({"Origin": "null"}, 403, "from_a_browser"),
        ({"Sec_Fetch_Site": "same-origin"}, 403, "from_a_browser"),
        ({"Host": "evil.example"}, 403, "not_this_host"),
        ({"Host": "127.0.0.1.evil.example"}, 403, "not_this_host"),
        ({"Host": "0.0.0.0"}, 403, "not_this_host"),
        ({"Content_Length": "5000000"}, 413, "body_too_large"),
        ({"Content_Length": "-1"}, 400, "bad_length"),
        ({"Content_Length": "²"}, 400, "bad_length"),
        ({"Content_Length": "0"}, 422, "empty_record"),
        ({"Transfer_Encoding": "chunked"}, 411, "length_required"),
    ],
)
def test_what_is_no_record_for_this_port_is_refused_with_its_code_and_counted(
    ingress: Ingress, headers: dict[str, str], status: int, code: str
) -> None:
    got, body = ingress.post(b'{"n": 1}', **headers)
    assert (got, body["code"]) == (status, code)
    assert body["detail"].endswith(".")
    assert ingress.codes() == {code: 1}
    assert ingress.lines() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]:9000", "::1", "127.0.0.2:1"])
def test_senders_on_this_host_are_served_by_any_of_its_names(ingress: Ingress, host: str) -> None:
    assert ingress.post(b'{"n": 1}', Host=host, Content_Encoding="identity") == (202, {})


def test_a_query_is_ignored_and_another_path_or_method_is_not_counted(ingress: Ingress) -> None:
    assert ingress.post(b'{"n": 1}', "/in?tag=a&x")[0] == 202
    assert ingress.post(b'{"n": 2}', "/in/")[0] == 404
    assert b" 501 " in ingress.raw(b"GET /in HTTP/1.1\r\nHost: localhost\r\n\r\n").splitlines()[0]
    assert ingress.codes() == {}


def test_a_connection_carries_many_records(ingress: Ingress) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", ingress.port, timeout=20)
    for number in range(20):
        connection.request("POST", "/in", json.dumps({"n": number}).encode())
        assert connection.getresponse().read() == b"{}"
    connection.close()
    assert [json.loads(line)["n"] for line in ingress.lines()] == list(range(20))


def test_forty_senders_at_once_are_all_served(ingress: Ingress) -> None:
    with ThreadPoolExecutor(40) as senders:
        answers = list(senders.map(lambda n: ingress.post(json.dumps({"n": n}).encode())[0], range(40)))
    assert answers == [202] * 40
    assert sorted(json.loads(line)["n"] for line in ingress.lines()) == list(range(40))


def test_senders_that_send_nothing_block_no_other_for_long(ingress: Ingress) -> None:
    silent = [socket.create_connection(("127.0.0.1", ingress.port)) for _ in range(60)]
    try:
        assert ingress.post(b'{"n": 1}')[0] == 202
    finally:
        for one in silent:
            one.close()


def test_a_body_that_ends_early_is_counted_and_comes_out_nowhere(ingress: Ingress) -> None:
    assert ingress.raw(b"POST /in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{}") == b""
    assert ingress.codes() == {"body_incomplete": 1}
    two = b"POST /in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 7\r\n\r\n{}"
    assert b" 411 " in ingress.raw(two)
    assert ingress.lines() == []


def test_a_body_that_comes_too_slowly_is_refused_and_counted(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.runtime.agent.pipeline.listen.REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", ingress.port), timeout=30) as one:
        one.sendall(b'POST /in HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n{"n"')
        answer = http.client.HTTPResponse(one)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["code"]) == (408, "body_too_slow")
    assert ingress.codes() == {"body_too_slow": 1}
    assert ingress.lines() == []


def test_what_is_refused_is_on_disk_though_nothing_follows(ingress: Ingress, tmp_path: Path) -> None:
    assert ingress.post(b'{"n": 1}', Content_Encoding="gzip")[0] == 415
    kept = json_lines(tmp_path / "state" / "refused.jsonl")
    assert [(item["stage"], item["code"]) for item in kept] == [("lane:ingress", "content_coding")]


def test_a_connection_for_which_no_thread_could_begin_takes_no_place(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*given: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(socketserver.ThreadingMixIn, "process_request", no_thread)
        for _ in range(MAX_CONNECTIONS):
            with pytest.raises((OSError, http.client.HTTPException)):
                ingress.post(b'{"n": 1}')
    assert ingress.post(b'{"n": 1}')[0] == 202


def test_ipv6_is_listened_on(tmp_path: Path) -> None:
    made = Ingress(tmp_path, host="::1")
    try:
        assert made.post(b'{"n": 1}')[0] == 202
    finally:
        made.pipeline.stop()


BODIES = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda n: json.dumps({"n": n}, indent=2).encode(), st.integers()),
    st.lists(st.builds(lambda n: json.dumps({"n": n}).encode(), st.integers()), max_size=3).map(b"\n".join),
    st.dictionaries(st.sampled_from("nm"), st.text() | st.none()).map(lambda value: json.dumps(value).encode()),
)


@given(body=BODIES, op=st.sampled_from(["dataguard_check", "identity"]))
@example(body=b"\r\x00", op="identity")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_comes_out_as_one_whole_record_that_passed_or_not_at_all_with_a_code(
    ports: dict[str, Ingress], body: bytes, op: str
) -> None:
    port = ports[op]
    before, counted = port.lines(), sum(port.codes().values())
    status, answer = port.post(body)
    new = port.lines()[len(before) :]
    refused = sum(port.codes().values()) - counted
    if status == 202:
        assert (len(new), refused) == (1, 0)
        assert new[0].endswith(b"\n")
        if op == "dataguard_check":
            assert "n" in json.loads(new[0])
            assert json.loads(new[0]) == json.loads(body)
    else:
        assert status == 422
        assert answer["code"]
        assert (new, refused) == ([], 1)


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[dict[str, Ingress]]:
    made = {}
    for op in ("dataguard_check", "identity"):
        (tmp_path / op).mkdir()
        made[op] = Ingress(tmp_path / op, op)
    yield made
    for port in made.values():
        port.pipeline.stop()


class Receiver:
    """Takes connections and answers what `answer` returns, or nothing at all."""

    def __init__(self, answer: Any) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/in"
        self.answer = answer
        self.got: list[Any] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._receive, args=(one,), daemon=True).start()

    def _receive(self, one: socket.socket) -> None:
        with one, one.makefile("rb") as lines:
            while True:
                length = 0
                while (line := lines.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                if not line:
                    return
                status = self.answer(body := json.loads(lines.read(length)))
                if status is None:
                    # the sender gives up and closes
                    lines.read(1)
                    return
                self.got.append((body, status))
                one.sendall(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % status)

    def close(self) -> None:
        self._listening.close()


def test_a_receiver_that_refuses_one_record_holds_up_no_other_and_its_sender_gets_the_refusal(tmp_path: Path) -> None:
    receiver = Receiver(lambda body: 422 if body["n"] == 2 else 200)
    made = Ingress(tmp_path, egress={"type": "http", "url": receiver.url})
    try:
        answers = [made.post(json.dumps({"n": number}).encode()) for number in range(4)]
        assert answers == [(202, {}), (202, {}), (422, {"code": "egress_refused"}), (202, {})]
        assert receiver.got == [({"n": 0}, 200), ({"n": 1}, 200), ({"n": 2}, 422), ({"n": 3}, 200)]
        assert made.codes() == {"egress_refused": 1}
        assert made.pipeline.healthy()
    finally:
        made.pipeline.stop()
        receiver.close()


def test_a_receiver_that_refuses_everything_is_named_and_records_stay_with_their_senders(tmp_path: Path) -> None:
    receiver = Receiver(lambda body: 403)
    made = Ingress(tmp_path, egress={"type": "http", "url": receiver.url})
    try:
        assert made.post(b'{"n": 1}')[0] == 503
        assert "egress answered 403: its receiver refuses all that is sent like this" in made.pipeline.problem()
        assert made.codes() == {}
    finally:
        made.pipeline.stop()
        receiver.close()


def test_a_sender_has_its_answer_in_bounded_time_while_the_receiver_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.runtime.agent.pipeline.run.ANSWER_SECONDS", 1.5)
    receiver = Receiver(lambda body: None)
    made = Ingress(tmp_path, egress={"type": "http", "url": receiver.url})
    try:
        begun = time.monotonic()
        assert made.post(b'{"n": 1}')[0] == 503
        assert time.monotonic() - begun < 9
    finally:
        made.pipeline.stop()
        receiver.close()
