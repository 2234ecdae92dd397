"""The agent as a service: what it does on a host that is full, slow, wrong about the time, or killed."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from apps.runtime.trust import DIRECTIVE_LIFE_MS
from tests.lines import json_lines
from tests.runtime.agent.fake_control_plane import ControlPlane
from tests.runtime.agent.host import Host
from tests.runtime.agent.waiting import until
from tests.runtime.making import DEPLOYMENT, acting, now_ms
from tests.services import free_port

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

FILES = {"ingress": {"type": "file", "path": "in.jsonl"}, "egress": {"type": "file", "path": "out.jsonl"}}


def offer(host: Host, *ops: str, sequence: int = 1001, seq: int = 11, **config: Any) -> None:
    """Want a pipeline that does `ops`."""
    made = host.plane.maker.bundle(spec=acting(*ops), sequence=sequence, config={"adapters": FILES, **config})
    host.plane.offer(host.plane.maker.directive(made, seq), made.archive)


class Receiver:
    """Takes records on a fixed port, when it is up."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/in"
        self.got: list[Any] = []
        self._server: ThreadingHTTPServer | None = None

    def up(self) -> None:
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.down()


@pytest.mark.parametrize(
    ("op", "code"), [("exec:/bin/true", "exec_not_allowed"), ("http_post:http://127.0.0.1:9/", "post_not_allowed")]
)
def test_what_this_host_does_not_allow_is_refused_before_anything_is_switched(running: Host, op: str, code: str):
    offer(running, op)
    assert code in running.reported("failed")["reason"]
    assert "went back" not in running.log()
    assert running.feed() == {"n": 2, "name": "ann"}


def test_a_pipeline_that_would_read_what_it_writes_is_refused(running: Host):
    (running.data / "same.jsonl").symlink_to("in.jsonl")
    loop = {**FILES, "egress": {"type": "file", "path": "same.jsonl"}}
    offer(running, "identity", adapters=loop)
    assert "path_not_allowed" in running.reported("failed")["reason"]
    assert running.feed() == {"n": 2, "name": "ann"}


def test_records_wait_for_a_receiver_that_is_away_and_none_is_lost_or_out_of_order(
    tmp_path: Path, plane: ControlPlane, receiver: Receiver
):
    host = Host(tmp_path, plane)
    host.options = ("--allow-post", receiver.url, "--allow-exec", "/usr/bin/tee")
    host.start()
    try:
        receiver.up()
        offer(host, f"http_post:{receiver.url}", "exec:/usr/bin/tee|-a|teed")
        host.reported("activated")
        host.write({"n": 1})
        until(lambda: host.emitted() == [{"n": 1}])
        receiver.down()
        host.write({"n": 2}, {"n": 3})
        host.beat(ok=False, words="post_failed")
        host.kill()
        host.start()
        host.beat(ok=False, words="post_failed")
        receiver.up()
        host.beat(ok=True)
        until(lambda: host.emitted() == [{"n": 1}, {"n": 2}, {"n": 3}])
        assert receiver.got == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert (tmp_path / "data" / "teed").read_bytes() == b'{"n": 1}{"n": 2}{"n": 3}'
    finally:
        host.stop()


def test_a_pipeline_that_ends_at_once_is_not_activated_and_the_former_goes_on(running: Host):
    (running.data / "other.jsonl").write_text("{}\n")
    running.break_pipeline()
    offer(running, "identity", adapters={**FILES, "ingress": {"type": "file", "path": "other.jsonl"}})
    assert "unhealthy" in running.reported("failed")["reason"]
    assert running.feed() == {"n": 2, "name": "ann"}
    running.beat(ok=True)


def test_a_pipeline_that_ends_later_is_reported_within_a_beat_and_started_again(running: Host):
    before = len(running.plane.beats)
    running.break_pipeline()
    running.write({"n": 0})
    beat = until(lambda: next((b for b in running.plane.beats[before:] if not b["health"]["ok"]), None))
    assert "a test asked for this error" in beat["health"]["detail"]
    assert beat["status"] == "unhealthy"
    assert beat["running"]["sequence"] == 1000
    running.beat(ok=True)
    until(lambda: {"n": 0} in running.emitted())
    assert running.feed() == {"n": 2, "name": "ann"}
    assert json.loads((running.home / "state" / "active.json").read_text())["sequence"] == 1000


def limit_files(host: Host, most: int) -> None:
    """No file of the agent may grow beyond `most` bytes: what it writes then fails, as on a full disk."""
    assert host.process is not None
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def test_a_full_disk_holds_the_pipeline_until_there_is_space_and_no_line_is_torn_or_lost(running: Host):
    limit_files(running, 8 * 1024)
    running.write(*({"n": n, "text": "x" * 1000} for n in range(100)))
    running.beat(ok=False, words="disk_full")
    assert all(row["n"] == n for n, row in enumerate(running.emitted()[1:]))
    limit_files(running, resource.RLIM_INFINITY)
    until(lambda: len(running.emitted()) == 101)
    assert [row["n"] for row in running.emitted()[1:]] == list(range(100))
    running.beat(ok=True)


def test_a_bundle_that_does_not_fit_on_the_disk_is_not_activated_and_nothing_kept_is_harmed(running: Host):
    state = running.home / "state"
    before = (state / "active.json").read_bytes()
    limit_files(running, 4 * 1024)
    second = running.plane.maker.bundle("name:drop", sequence=1001)
    running.plane.offer(running.plane.maker.directive(second, 11), second.archive)
    assert "disk_full" in running.reported("failed")["reason"]
    assert (state / "active.json").read_bytes() == before
    assert running.feed() == {"n": 2, "name": "ann"}
    running.stop()
    assert not list(state.rglob(".*.new"))
    running.start()
    assert running.feed() == {"n": 3, "name": "ann"}


def test_a_host_with_a_wrong_clock_reports_it(running: Host):
    plane, hour = running.plane, 3600 * 1000
    plane.clock_ahead = 3600
    running.beat(ok=True, words="behind the control plane's")
    second = plane.maker.bundle("name:drop", sequence=1001)
    original = plane.answer

    def signed_anew(path: str, body: Any) -> tuple[int, Any]:
        at = now_ms() + hour
        plane.offer(plane.maker.directive(second, 11, issued_at=at, expires_at=at + DIRECTIVE_LIFE_MS), second.archive)
        return original(path, body)

    plane.answer = signed_anew  # type: ignore[method-assign]
    reason = running.reported("failed", "directive_not_yet_valid")["reason"]
    assert "this host's clock is" in reason
    assert running.feed() == {"n": 2, "name": "ann"}
    for _ in range(3):
        running.beat(ok=True, words="behind")
    assert [report["status"] for report in plane.reports] == ["failed"]  # reported once, however often it is signed
    plane.clock_ahead = 0
    until(lambda: "clock" not in plane.beats[-1]["health"]["detail"])


def test_five_minutes_of_skew_are_allowed(running: Host):
    plane, skew = running.plane, 4 * 60 * 1000
    for number, at in ((11, now_ms() + skew), (12, now_ms() - DIRECTIVE_LIFE_MS - skew)):
        bundle = plane.maker.bundle("name:drop", sequence=1000 + number)
        directive = plane.maker.directive(bundle, number, issued_at=at, expires_at=at + DIRECTIVE_LIFE_MS)
        plane.reports.clear()
        plane.offer(directive, bundle.archive)
        running.reported("activated")


def test_reports_made_without_a_server_are_delivered_in_order_after_a_kill(running: Host):
    plane = running.plane
    original = plane.answer
    plane.answer = lambda path, body: (503, {}) if path.endswith("/status") else original(path, body)  # type: ignore[method-assign]
    second = plane.maker.bundle("name:drop", sequence=1001)
    plane.offer(plane.maker.directive(second, 11), second.archive)
    until(lambda: "activated bundle" in running.log().partition("sequence 1000")[2])
    state = running.home / "state"
    until(lambda: len(json.loads((state / "outbox.json").read_text())) == 3)
    # killed before the directive is remembered, it is followed again and "activated" reported again, which is allowed
    until(lambda: json.loads((state / "memory.json").read_text())["directive_seq"] == 11)
    running.kill()
    plane.answer = original  # type: ignore[method-assign]
    running.start()
    running.reported("activated")
    # one that was under way at the kill may arrive, and is reported again: the agent can't know that it did
    assert [status for status, _ in groupby(r["status"] for r in plane.reports)] == ["fetched", "verified", "activated"]
    assert {r["to"] for r in plane.reports} == {DEPLOYMENT}


def test_nonsense_from_the_control_plane_ends_neither_the_agent_nor_what_runs(running: Host):
    plane = running.plane
    original, answers = plane.answer, iter([[], "x", {"desired": []}, {"desired": {"envelope": 1}}, None, 7])
    served: list[Any] = []

    def nonsense(path: str, body: Any) -> tuple[int, Any]:
        if path.endswith("/heartbeat"):
            answer = next(answers, ...)
            if answer is not ...:
                served.append(answer)
                return 200, answer
        return original(path, body)

    plane.answer = nonsense  # type: ignore[method-assign]
    until(lambda: len(served) == 6)
    running.beat(ok=True)
    assert running.feed() == {"n": 2, "name": "ann"}


def test_killed_between_batches_nothing_is_lost(running: Host):
    running.write(*({"n": n} for n in range(10, 4000)))
    until(lambda: len(running.emitted()) > 10)
    running.kill()
    running.write(*({"n": n} for n in range(4000, 5000)))
    running.start()
    until(lambda: running.emitted() and running.emitted()[-1] == {"n": 4999})
    assert {row["n"] for row in running.emitted()} >= set(range(10, 5000))


def ask(host: Host, *arguments: str) -> str:
    """What a command of the agent prints while an agent runs."""
    done = subprocess.run(
        [sys.executable, str(host.program), *arguments, "--state-dir", str(host.home / "state")],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout


def test_status_shows_what_was_refused_and_where_it_is_kept_and_that_stays_on_the_host(running: Host):
    with (running.data / "in.jsonl").open("ab") as out:
        out.write(b"ann@example.com is no record\n")
    refused = until(lambda: json.loads(ask(running, "status"))["refused"])
    assert refused == {"redact": {"not_json": 1}}
    (kept,) = until(lambda: json_lines(running.home / "state" / "refused.jsonl"))
    assert (kept["code"], kept["record"]) == ("not_json", "ann@example.com is no record")
    beat = until(lambda: next((b for b in running.plane.beats if "not_json" in json.dumps(b["metrics"])), None))
    assert beat["metrics"]["stages"]["redact"]["codes"] == {"not_json": 1}
    assert "ann@example.com" not in json.dumps(running.plane.beats) + json.dumps(running.plane.reports)


def test_status_and_an_incident_show_the_state_and_hold_no_key(running: Host):
    status = json.loads(ask(running, "status"))
    assert status["running"]["sequence"] == 1000
    assert status["reports_waiting"] == 0
    assert status["program"]["version"] == status["version"]
    running.break_pipeline()
    running.write({"n": 0})
    running.beat(ok=False, words="a test asked for this error")
    problem = until(lambda: json.loads(ask(running, "status"))["health"]["last_problem"])
    assert "a test asked for this error" in problem["detail"]
    output = running.home / "incident.zip"
    ask(running, "incident", "--output", str(output))
    assert output.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(output) as capture:
        texts = {name: capture.read(name).decode() for name in capture.namelist()}
    assert {"spec.kv", "spec_validation.json", "runtime.json", "policy_audit.json", "environment.json"} <= set(texts)
    runtime = json.loads(texts["runtime.json"])
    assert "a test asked for this error" in runtime["health"]["last_problem"]["detail"]
    assert any("the pipeline ended" in line for line in runtime["log"])
    assert json.loads(texts["policy_audit.json"])["allowed"]["data_dir"] == str(running.data)
    assert "byt_agt" not in json.dumps(status) + "".join(texts.values())
