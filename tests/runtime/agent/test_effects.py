"""`http_post` and `exec` as they really happen on a host."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from apps.runtime.agent import effects as module
from apps.runtime.agent.effects import HostEffects
from apps.runtime.agent.limits import Limits
from apps.runtime.ops.effects import EffectFailed, EffectRefused
from tests.processes import is_alive
from tests.runtime.agent.waiting import until


class Receiver:
    """An HTTP server with given answers that remembers what it was sent."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, {}, b"ok"
        self.seen: list[tuple[str, bytes]] = []
        self.connections = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                receiver.connections += 1
                super().setup()

            def do_POST(self) -> None:
                receiver.seen.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(receiver.status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(receiver.body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(receiver.body)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def host(tmp_path: Path, receiver: Receiver) -> Iterator[HostEffects]:
    (tmp_path / "data").mkdir()
    (tmp_path / "state").mkdir()
    limits = Limits.given(tmp_path / "data", posts=[f"{receiver.url}/in"], programs=["/bin/sh", "/bin/cat"])
    made = HostEffects(limits, tmp_path / "state", {"GREETING": "hello"})
    yield made
    made.stop()
    made.close()


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def failure(act: Callable[[], None]) -> str:
    with pytest.raises(EffectFailed) as caught:
        act()
    return caught.value.code


def test_a_post_sends_the_same_bytes_to_exactly_that_url_over_one_connection(host: HostEffects, receiver: Receiver):
    host.http_post(f"{receiver.url}/in/x?q=1", b'{"a": 1}')
    host.http_post(f"{receiver.url}/in", b"\x00\xff")
    assert receiver.seen == [("/in/x?q=1", b'{"a": 1}'), ("/in", b"\x00\xff")]
    assert receiver.connections == 1


def test_a_redirect_is_not_followed_and_proxies_are_not_asked(
    host: HostEffects, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    receiver.status, receiver.headers = 307, {"Location": f"{receiver.url}/elsewhere"}
    assert failure(lambda: host.http_post(f"{receiver.url}/in", b"x")) == "post_failed"
    assert [path for path, _ in receiver.seen] == ["/in"]


@pytest.mark.parametrize("status", [301, 400, 401, 404, 429, 500, 503])
def test_an_answer_that_is_not_yes_is_a_failure(host: HostEffects, receiver: Receiver, status: int):
    receiver.status = status
    assert failure(lambda: host.http_post(f"{receiver.url}/in", b"x")) == "post_failed"


def test_a_receiver_refuses_one_record_with_422(host: HostEffects, receiver: Receiver):
    receiver.status = 422
    with pytest.raises(EffectRefused):
        host.http_post(f"{receiver.url}/in", b"x")


def test_no_more_of_an_answer_is_read_than_the_cap_and_the_next_record_is_sent_all_the_same(
    host: HostEffects, receiver: Receiver
):
    receiver.body = b"x" * (4 * 1024 * 1024)
    host.http_post(f"{receiver.url}/in", b"1")
    host.http_post(f"{receiver.url}/in", b"2")
    assert [body for _, body in receiver.seen] == [b"1", b"2"]


def test_a_url_that_is_not_allowed_is_asked_nothing(host: HostEffects, receiver: Receiver):
    assert failure(lambda: host.http_post(f"{receiver.url}/other", b"x")) == "post_not_allowed"
    assert receiver.seen == []


def test_a_receiver_that_hung_up_between_records_is_asked_again(host: HostEffects, receiver: Receiver):
    host.http_post(f"{receiver.url}/in", b"1")
    for connection in host._poster._kept.values():
        connection.sock.shutdown()
    host.http_post(f"{receiver.url}/in", b"2")
    assert [body for _, body in receiver.seen] == [b"1", b"2"]


def test_no_answer_is_a_failure(host: HostEffects, receiver: Receiver):
    receiver.server.shutdown()
    receiver.server.server_close()
    assert failure(lambda: host.http_post(f"{receiver.url}/in", b"x")) == "post_failed"


def test_a_program_gets_the_record_its_arguments_as_they_are_and_a_clean_environment(
    host: HostEffects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BYTEOR_AGENT_API_KEY", "secret")
    host.exec(
        (*sh('cat > got; printf "%s|" "$0" "$@" > args; env > env; pwd > pwd'), "a b", "$(id)", ";x"), b"\x00record"
    )
    data = tmp_path / "data"
    assert (data / "got").read_bytes() == b"\x00record"
    assert (data / "args").read_text() == "a b|$(id)|;x|"
    assert (data / "pwd").read_text().strip() == str(data)
    names = {line.split("=")[0] for line in (data / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "HOME", "GREETING", "PWD", "OLDPWD", "SHLVL", "_"}
    assert "GREETING" in names


def test_a_large_record_goes_through_a_program_that_reads_it_and_past_one_that_does_not(
    host: HostEffects, tmp_path: Path
):
    record = os.urandom(3 * 1024 * 1024)
    host.exec(sh("cat > big"), record)
    assert (tmp_path / "data" / "big").read_bytes() == record
    host.exec(sh("exit 0"), record)


def test_an_exit_code_decides_what_became_of_it(host: HostEffects):
    assert failure(lambda: host.exec(sh("exit 3"), b"x")) == "exec_failed"
    assert failure(lambda: host.exec(sh("kill -9 $$"), b"x")) == "exec_failed"
    with pytest.raises(EffectRefused):
        host.exec(sh("exit 65"), b"x")


def test_its_output_stays_on_this_host_and_is_capped(host: HostEffects, tmp_path: Path):
    host.exec(sh("cat >&2"), b"said to nobody else")
    log = tmp_path / "state" / "exec.log"
    assert b"said to nobody else" in log.read_bytes()
    assert log.stat().st_mode & 0o777 == 0o600
    assert failure(lambda: host.exec(sh("yes >&2"), b"")) == "exec_output"
    host.exec(sh("yes | head -c 1000000"), b"")  # its standard output goes nowhere
    assert log.stat().st_size < 32 * 1024


CHILD = "sleep 300 & echo $! > child; echo $$ > leader; "


def ends_all(data: Path) -> None:
    pids = [int((data / name).read_text()) for name in ("child", "leader")]
    until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(
    host: HostEffects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "EXEC_SECONDS", 2)
    assert failure(lambda: host.exec(sh(CHILD + "wait"), b"x")) == "exec_timeout"
    ends_all(tmp_path / "data")


def test_what_a_program_leaves_behind_is_ended_when_it_is_done(host: HostEffects, tmp_path: Path):
    host.exec(sh(CHILD + "exit 0"), b"x")
    ends_all(tmp_path / "data")


def test_stopping_ends_what_is_under_way_and_what_comes_after(host: HostEffects, tmp_path: Path):
    codes: list[str] = []
    thread = threading.Thread(target=lambda: codes.append(failure(lambda: host.exec(sh(CHILD + "wait"), b"x"))))
    thread.start()
    until(lambda: (tmp_path / "data" / "leader").exists() and (tmp_path / "data" / "leader").read_text())
    host.stop()
    thread.join(timeout=40)
    assert codes == ["stopping"]
    ends_all(tmp_path / "data")
    assert failure(lambda: host.exec(sh("exit 0"), b"x")) == "stopping"


@pytest.mark.alone
def test_an_agent_that_is_killed_takes_its_programs_and_theirs_with_it(tmp_path: Path):
    program = textwrap.dedent(f"""
        from pathlib import Path
        from apps.runtime.agent.effects import HostEffects
        from apps.runtime.agent.limits import Limits
        home = Path({str(tmp_path)!r})
        limits = Limits.given(home, programs=["/bin/sh"])
        HostEffects(limits, home, {{}}).exec(("/bin/sh", "-c", {CHILD + "wait"!r}), b"x")
    """)
    agent = subprocess.Popen([sys.executable, "-c", program])
    until(lambda: (tmp_path / "leader").exists() and (tmp_path / "leader").read_text())
    agent.kill()
    agent.wait()
    ends_all(tmp_path)
