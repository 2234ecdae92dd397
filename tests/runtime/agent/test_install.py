"""The install script, run as written on a made-up host: a folder for a root, and stand-ins for what only root can do."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from apps.runtime.agent.build import build_pyz, render_install_sh

ENVIRONMENT_URL = "https://cloud.example.com/api/v1/orgs/o/projects/p/environments/e"
STAND_INS = {
    "id": '[ "$1" = -u ] && echo "${FAKE_UID:-0}" && exit 0; exit 1',
    "systemctl": 'echo "systemctl $*" >> "$CALLS"',
    "useradd": 'echo "useradd $*" >> "$CALLS"',
    "chown": 'echo "chown $*" >> "$CALLS"',
}


class Machine:
    def __init__(self, home: Path) -> None:
        self.root, self.bin, self.calls = home / "root", home / "bin", home / "calls"
        self.bin.mkdir()
        self.calls.touch()
        for name, body in STAND_INS.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.bin / name).chmod(0o755)
        self.token = home / "token"
        self.token.write_text("byt_enr_once\n")
        self.script = home / "install.sh"
        self.served = build_pyz()
        machine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                there = self.path == "/install/byteor-agent.pyz"
                self.send_response(200 if there else 404)
                self.end_headers()
                self.wfile.write(machine.served if there else b"")

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.script.write_text(
            render_install_sh(
                base_url=f"http://127.0.0.1:{self.server.server_address[1]}",
                pyz_sha256=hashlib.sha256(build_pyz()).hexdigest(),
            )
        )

    def install(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(self.script), *arguments],
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "CALLS": str(self.calls),
                "BYTEOR_INSTALL_ROOT": str(self.root),
                "BYTEOR_PYTHON": sys.executable,
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def unit(self) -> Path:
        return self.root / "etc/systemd/system/byteor-agent.service"

    @property
    def program(self) -> Path:
        return self.root / "opt/byteor-agent/byteor-agent.pyz"

    @property
    def options(self) -> str:
        return (self.root / "etc/byteor-agent/options").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_it_installs_a_service_with_a_user_of_its_own_and_what_this_host_allows(machine: Machine):
    done = machine.install(ENVIRONMENT_URL, str(machine.token), "--allow-post", "https://hooks.example.com/in")
    assert done.returncode == 0, done.stderr
    assert machine.program.read_bytes() == build_pyz()
    token = machine.root / "var/lib/byteor-agent/enrollment-token"
    assert token.read_text() == "byt_enr_once\n"
    assert token.stat().st_mode & 0o777 == 0o600
    assert (machine.root / "var/lib/byteor-agent/state").stat().st_mode & 0o777 == 0o700
    assert "BYTEOR_AGENT_OPTIONS=--allow-post https://hooks.example.com/in\n" in machine.options
    unit = machine.unit.read_text()
    assert f"--environment-url {ENVIRONMENT_URL} " in unit
    assert "byt_enr_once" not in unit
    for line in (
        "User=byteor-agent", "Restart=always", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict",
        "PrivateTmp=yes", "StateDirectory=byteor-agent", "SystemCallFilter=@system-service", "KillMode=mixed",
    ):  # fmt: skip
        assert f"\n{line}\n" in unit
    calls = machine.calls.read_text()
    assert "useradd --system --user-group" in calls
    assert calls.splitlines()[-2:] == ["systemctl daemon-reload", "systemctl enable --now byteor-agent.service"]


def test_the_command_of_the_unit_is_one_that_the_installed_program_takes(machine: Machine, tmp_path: Path):
    assert machine.install(ENVIRONMENT_URL, str(machine.token), "--allow-egress", "https://h.example").returncode == 0
    line = next(row for row in machine.unit.read_text().splitlines() if row.startswith("ExecStart="))
    words = line.removeprefix("ExecStart=").replace("/opt/byteor-agent", str(machine.program.parent)).split()
    words[-1:] = machine.options.rsplit("BYTEOR_AGENT_OPTIONS=", 1)[1].split()
    words[words.index("--state-dir") + 1] = str(tmp_path / "state")
    words[words.index("--data-dir") + 1] = str(tmp_path / "data")
    # everything is understood; the made-up address is what stops it
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage" not in done.stderr
    assert subprocess.run([*words[:3], "--version"], capture_output=True, check=True).stdout


def test_a_program_with_another_digest_is_not_installed_and_the_former_stays(machine: Machine):
    assert machine.install(ENVIRONMENT_URL, str(machine.token)).returncode == 0
    machine.served = build_pyz() + b"more"
    machine.calls.write_text("")
    for arguments in ((ENVIRONMENT_URL, str(machine.token)), ("--upgrade",)):
        done = machine.install(*arguments)
        assert done.returncode == 1
        assert "digest" in done.stderr
    assert machine.program.read_bytes() == build_pyz()
    assert [path.name for path in machine.program.parent.iterdir()] == ["byteor-agent.pyz"]
    assert machine.calls.read_text() == ""


def test_upgrading_replaces_the_program_alone(machine: Machine):
    assert machine.install("--upgrade").returncode == 2
    assert machine.install(ENVIRONMENT_URL, str(machine.token), "--name", "till-1").returncode == 0
    unit, options = machine.unit.read_text(), machine.options
    machine.program.write_bytes(b"older")
    machine.calls.write_text("")
    assert machine.install("--upgrade").returncode == 0
    assert machine.program.read_bytes() == build_pyz()
    assert (machine.unit.read_text(), machine.options) == (unit, options)
    assert machine.calls.read_text() == "systemctl restart byteor-agent.service\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (ENVIRONMENT_URL,),
        ("ftp://h/", "{token}"),
        (ENVIRONMENT_URL + "\nExecStartPre=/bin/evil", "{token}"),
        (ENVIRONMENT_URL + " --allow-exec /bin/sh", "{token}"),
        (ENVIRONMENT_URL + "$(id)", "{token}"),
        (ENVIRONMENT_URL + "%n", "{token}"),
        (ENVIRONMENT_URL, "{token}", "--name", "a b"),
        (ENVIRONMENT_URL, "{token}", "--name", "'"),
        (ENVIRONMENT_URL, "/no/such/file"),
    ],
)
def test_what_can_not_stand_in_a_unit_is_refused_before_anything_is_done(machine: Machine, arguments: tuple[str, ...]):
    done = machine.install(*(text.format(token=machine.token) for text in arguments))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 or "\n" in arguments[0]
    assert not machine.root.exists()
    assert machine.calls.read_text() == ""


def test_it_wants_root_and_a_python_that_can_run_the_agent(machine: Machine):
    assert "root" in machine.install(ENVIRONMENT_URL, str(machine.token), FAKE_UID="1000").stderr
    assert "3.11" in machine.install(ENVIRONMENT_URL, str(machine.token), BYTEOR_PYTHON="/bin/false").stderr
    assert not machine.root.exists()


def test_a_script_that_arrives_cut_short_does_nothing(machine: Machine):
    text = machine.script.read_text()
    machine.script.write_text(text[: text.rindex('main "$@"')])
    machine.install(ENVIRONMENT_URL, str(machine.token))
    assert not machine.root.exists()


@pytest.mark.parametrize("url", ["https://h/'; evil; '", "https://h/path", "javascript:x", "https://h\n"])
def test_a_base_url_that_could_mean_more_than_an_origin_is_not_written(url: str):
    with pytest.raises(ValueError, match="origin"):
        render_install_sh(base_url=url, pyz_sha256="0" * 64)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(machine: Machine):
    done = subprocess.run(["shellcheck", str(machine.script)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit_and_finds_little_exposed(machine: Machine):
    assert machine.install(ENVIRONMENT_URL, str(machine.token)).returncode == 0
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(machine.unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
