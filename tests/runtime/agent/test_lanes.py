"""A graph on a host: every ingress lane has its file or port, every egress lane its file, and nothing of one is in another."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline import Pipeline
from apps.runtime.agent.state import State
from apps.runtime.bundle import read_bundle, verify_bundle
from apps.runtime.interpreter import Interpreter, Outcome
from tests.lines import whole_lines
from tests.runtime.agent.waiting import until
from tests.runtime.making import Maker
from tests.services import free_port

EXAMPLES = Path(__file__).parents[3] / "docs/examples"
SPEC = (EXAMPLES / "21-fan-out-and-merge.kv").read_text()


class Host:
    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.data.mkdir()
        self.state = State(home / "state", lock=False)
        self.logged: list[str] = []
        self.config: dict[str, Any] = json.loads((EXAMPLES / "config-fan-out.json").read_text())
        self.port = self.config["adapters"]["ingress"]["lanes"]["market"]["port"] = free_port()
        self.pipeline: Pipeline | None = None

    def start(self) -> Pipeline:
        maker = Maker()
        bundle = verify_bundle(read_bundle(maker.bundle(spec=SPEC, config=self.config).archive), keys=maker.keys)
        self.pipeline = Pipeline(bundle, Limits.given(self.data), self.state, self.logged.append)
        self.pipeline.start()
        return self.pipeline

    def stop(self) -> None:
        if self.pipeline is not None:
            self.pipeline.stop()
            self.pipeline = None

    def append(self, name: str, *lines: str) -> None:
        with (self.data / name).open("a") as file:
            file.writelines(line + "\n" for line in lines)

    def lines(self, name: str) -> list[str]:
        path = self.data / name
        return whole_lines(path)

    def post(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/orders", body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.stop()


def test_records_of_a_file_and_a_port_go_through_one_graph_to_the_file_of_each_lane(host: Host) -> None:
    host.append("shop.jsonl", '{ "id": 1, "payment": {"card": "41111"} }')
    pipeline = host.start()
    raw = ['{ "id": 1, "payment": {"card": "41111"} }']
    out = ['{"id":1,"payment":{"card":"*1111"}}', raw[0]]
    until(lambda: host.lines("out.jsonl") == out)
    assert host.lines("raw.jsonl") == raw
    assert host.post(b'{"id":2}') == (202, b"{}")
    assert host.lines("raw.jsonl") == [*raw, '{"id":2}']
    assert host.lines("out.jsonl") == [*out, '{"id":2}', '{"id":2}']
    # one copy is refused by the check and by the redaction, the raw one has come out all the same
    assert host.post(b"[]") == (202, b"{}")
    assert host.lines("raw.jsonl")[-1] == "[]"
    stages = pipeline.metrics()["stages"]
    assert [stages[name]["codes"] for name in ("check", "redact")] == [{"not_an_object": 1}] * 2
    assert pipeline.metrics()["stages"]["sources"] == {"received": 3, "forwarded": 3, "refused": 0, "codes": {}}
    assert pipeline.healthy()
    host.append("shop.jsonl", '{"id":3}')
    until(lambda: '{"id":3}' in host.lines("out.jsonl"))


def test_each_file_is_read_on_from_where_it_was_after_a_restart(host: Host) -> None:
    lanes = host.config["adapters"]["ingress"]["lanes"]
    lanes["market"] = {"type": "file", "path": "market.jsonl"}
    host.append("shop.jsonl", '{"id":1}')
    host.append("market.jsonl", '{"id":2}', '{"id":3}')
    host.start()
    until(lambda: len(host.lines("raw.jsonl")) == 3)
    host.stop()
    host.append("market.jsonl", '{"id":4}')
    host.start()
    until(lambda: len(host.lines("raw.jsonl")) == 4)
    assert host.lines("raw.jsonl")[-1] == '{"id":4}'
    assert sorted(host.lines("raw.jsonl")) == ['{"id":1}', '{"id":2}', '{"id":3}', '{"id":4}']


def test_a_lane_without_an_adapter_is_idle_and_what_goes_out_by_one_ends_there(host: Host) -> None:
    adapters = host.config["adapters"]
    del adapters["ingress"]["lanes"]["market"], adapters["egress"]["lanes"]["orders"]
    host.append("shop.jsonl", '{"id":1}')
    host.start()
    until(lambda: host.lines("out.jsonl") == ['{"id":1}', '{"id":1}'])
    assert host.lines("raw.jsonl") == []


def test_one_file_under_two_names_is_refused_and_a_port_that_is_taken_leaves_no_other_open(host: Host) -> None:
    egress = host.config["adapters"]["egress"]["lanes"]
    egress["orders"]["path"] = "./out.jsonl"
    with pytest.raises(ActivationError, match="path_not_allowed"):
        host.start()
    egress["orders"]["path"] = "raw.jsonl"
    other = free_port()
    host.config["adapters"]["ingress"]["lanes"] = {
        "shop": {"type": "http", "port": other},
        "market": {"type": "http", "port": host.port},
    }
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", host.port))
        taken.listen()
        with pytest.raises(ActivationError, match="adapter_failed"):
            host.start()
        host.stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", other))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["pipeline-market", "pipeline", "look"])
def test_a_thread_that_can_not_be_started_fails_the_start_and_the_stop_leaves_nothing_behind(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        real(thread)

    host.append("shop.jsonl", '{"id":1}')
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(ActivationError, match="adapter_failed"):
            host.start()
    host.stop()
    host.start()
    until(lambda: '{"id":1}' in host.lines("raw.jsonl"))
    assert host.post(b'{"id":2}')[0] == 202
    assert sorted(host.lines("raw.jsonl")) == ['{"id":1}', '{"id":2}']


def test_what_a_sender_was_refused_by_an_unforeseen_error_does_not_come_out_with_the_next_record(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = host.start()

    def fails(until: float | None = None) -> None:
        raise KeyError("a secret")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._sinks, "flush", fails)
        assert host.post(b'{"id":1}') == (503, b'{"code": "unavailable"}')
    assert pipeline.problem() == "KeyError"
    assert host.post(b'{"id":2}')[0] == 202
    assert host.post(b'{"id":1}')[0] == 202
    assert host.lines("raw.jsonl") == ['{"id":2}', '{"id":1}']
    assert pipeline.healthy()


def test_what_was_read_before_an_unforeseen_error_comes_out_once_though_another_lane_goes_on(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Interpreter.process

    def process(self: Interpreter, record: bytes, lane: str | None = None) -> Outcome:
        if record == b'{"id":2}':
            raise KeyError("id")
        return real(self, record, lane)

    host.append("shop.jsonl", '{"id":1}', '{"id":2}')
    with monkeypatch.context() as patch:
        patch.setattr(Interpreter, "process", process)
        pipeline = host.start()
        until(lambda: not pipeline.alive())
        assert host.post(b'{"id":3}')[0] == 202
        host.stop()
    host.start()
    until(lambda: '{"id":2}' in host.lines("raw.jsonl"))
    assert host.lines("raw.jsonl") == ['{"id":3}', '{"id":1}', '{"id":2}']
