"""A pipeline on a host: files that rotate, break off and end; senders that learn what became of their record."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.runtime.agent.limits import Limits
from apps.runtime.agent.pipeline import ActivationError, Pipeline
from apps.runtime.agent.state import State
from apps.runtime.bundle import read_bundle, verify_bundle
from tests.lines import json_lines
from tests.runtime.agent.waiting import until
from tests.runtime.making import Maker, acting
from tests.services import free_port

OUT = {"type": "file", "path": "out.jsonl"}
Start = Callable[..., Pipeline]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def start(tmp_path: Path, data: Path) -> Iterator[Start]:
    running: list[Pipeline] = []
    maker, state = Maker(), State(tmp_path / "state", lock=False)

    def begin(
        ingress: dict[str, Any], *ops: str, environment: dict[str, Any] | None = None, **allowed: Any
    ) -> Pipeline:
        config: dict[str, Any] = {"adapters": {"ingress": ingress, "egress": OUT}, "environment": environment or {}}
        if "dataguard_check" in ops:
            config["stages"] = {f"s{ops.index('dataguard_check')}": {"schema": {"required": ["n"]}}}
        made = maker.bundle(spec=acting(*(ops or ("identity",))), config=config)
        bundle = verify_bundle(read_bundle(made.archive), keys=maker.keys)
        pipeline = Pipeline(bundle, Limits.given(data, **allowed), state, lambda text: None)
        pipeline.start()
        running.append(pipeline)
        return pipeline

    yield begin
    for pipeline in running:
        pipeline.stop()


def rows(data: Path) -> list[int]:
    path = data / "out.jsonl"
    return [row["n"] for row in json_lines(path)]


def lines(*numbers: int) -> str:
    return "".join(json.dumps({"n": n}) + "\n" for n in numbers)


FILE = {"type": "file", "path": "in.jsonl"}


def test_a_file_that_is_renamed_is_read_to_its_end_and_the_next_one_from_its_start(data: Path, start: Start):
    source = data / "in.jsonl"
    source.write_text(lines(1, 2))
    start(FILE)
    until(lambda: rows(data) == [1, 2])
    with source.open("a") as old:
        source.rename(data / "in.jsonl.1")
        old.write(lines(3) + '{"n": 4')
        old.flush()
        (data / "in.jsonl").write_text(lines(5, 6))
        until(lambda: rows(data) == [1, 2, 3, 5, 6])
        old.write("}\n")  # another writer had not gone over yet
        old.flush()
        until(lambda: rows(data) == [1, 2, 3, 5, 6, 4])


def test_a_file_that_is_emptied_is_read_from_its_start(data: Path, start: Start):
    source = data / "in.jsonl"
    source.write_text(lines(1, 2, 3))
    start(FILE)
    until(lambda: rows(data) == [1, 2, 3])
    source.write_text(lines(4))
    until(lambda: rows(data) == [1, 2, 3, 4])


def test_a_file_that_appears_later_is_read_and_a_line_only_once_it_has_ended(data: Path, start: Start):
    pipeline = start(FILE)
    with (data / "in.jsonl").open("w") as source:
        source.write('{"n": 1}\n{"n":')
        source.flush()
        until(lambda: rows(data) == [1])
        source.write(" 2}\n")
        source.flush()
        until(lambda: rows(data) == [1, 2])
    assert pipeline.healthy()


def test_a_file_that_is_not_followed_is_read_to_its_end_and_all_is_well_then(data: Path, start: Start):
    (data / "in.jsonl").write_text(lines(1) + '{"n": 2}')
    pipeline = start({**FILE, "follow": False})
    until(lambda: rows(data) == [1, 2])
    until(lambda: not any(thread.is_alive() for thread in pipeline._threads))
    assert pipeline.healthy()


def test_its_place_in_a_file_is_kept_when_it_starts_again(data: Path, start: Start):
    (data / "in.jsonl").write_text(lines(1, 2))
    first = start(FILE)
    until(lambda: rows(data) == [1, 2])
    first.stop()
    with (data / "in.jsonl").open("a") as more:
        more.write(lines(3))
    start(FILE)
    until(lambda: rows(data) == [1, 2, 3])


def post(port: int, body: bytes, path: str = "/in") -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Retry-After")
    finally:
        connection.close()


def test_a_sender_learns_what_became_of_its_record_and_keeps_it_while_an_effect_fails(data: Path, start: Start):
    port, there = free_port(), data / "there"
    ops = ("dataguard_check", f"exec:/bin/sh|-c|test -e {there}")
    pipeline = start({"type": "http", "port": port, "path": "/in"}, *ops, programs=["/bin/sh"])
    assert post(port, b'{"n": 1}') == (503, "1")
    assert not pipeline.healthy()
    assert "exec_failed" in pipeline.problem()
    assert rows(data) == []
    there.touch()
    assert post(port, b'{"n": 1}')[0] == 202
    assert pipeline.healthy()
    assert rows(data) == [1]
    assert post(port, b'{"m": 1}')[0] == 422
    assert post(port, b"{}", "/elsewhere")[0] == 404
    assert rows(data) == [1]
    assert pipeline.metrics()["stages"]["s0"] == {
        "received": 2,
        "forwarded": 1,
        "refused": 1,
        "codes": {"schema_violation": 1},
    }


def test_a_body_with_line_feeds_is_one_line_or_none(data: Path, start: Start):
    port = free_port()
    pipeline = start({"type": "http", "port": port, "path": "/in"})
    assert post(port, b'{\n  "n": 1\r\n}\n')[0] == 202
    assert post(port, b'{"n": 2}\n')[0] == 202
    for body in (b'{"n": 3}\n{"n": 4}\n', b"a\nb", b'{"n": "\n"}', b"\n\n"):
        assert post(port, body)[0] == 422
    assert (data / "out.jsonl").read_bytes() == b'{   "n": 1 }\n{"n": 2}\n'
    assert pipeline.metrics()["stages"]["lane:egress"]["codes"] == {"record_has_line_feed": 4}


def test_a_program_gets_the_variables_and_secrets_that_this_host_allows_and_a_bundle_no_others(
    tmp_path: Path, data: Path, start: Start
):
    (tmp_path / "password").write_text("hush\n")
    secret = f"file:{tmp_path}/password"
    (data / "in.jsonl").write_text(lines(1))
    op, given = "exec:/bin/sh|-c|echo $PLACE $PASSWORD > seen", {"PLACE": "here", "PASSWORD": {"secret_ref": secret}}
    allowed: dict[str, Any] = {"programs": ["/bin/sh"], "variables": ["PLACE", "PASSWORD"], "secrets": [secret]}
    start(FILE, op, environment=given, **allowed)
    until(lambda: rows(data) == [1])
    assert (data / "seen").read_text() == "here hush\n"
    for missing, code in (("variables", "variable_not_allowed"), ("secrets", "secret_not_allowed")):
        with pytest.raises(ActivationError, match=code):
            start(FILE, op, environment=given, **{**allowed, missing: []})


def test_what_a_program_refuses_is_counted_and_the_next_record_goes_on(data: Path, start: Start):
    (data / "in.jsonl").write_text(lines(1, 2, 3))
    pipeline = start(FILE, "exec:/bin/sh|-c|grep -q 2 && exit 65; exit 0", programs=["/bin/sh"])
    until(lambda: rows(data) == [1, 3])
    assert pipeline.healthy()
    assert pipeline.metrics()["stages"]["s0"] == {
        "received": 3,
        "forwarded": 2,
        "refused": 1,
        "codes": {"exec_refused": 1},
    }
