"""The README's first deployment, as a newcomer makes it: `make up`'s demo, and the script of the guides."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.flows.world import ROOT, World, free_port, running, until
from tests.lines import json_lines, log_text

pytestmark = [pytest.mark.alone, pytest.mark.timeout(480)]

SCRIPT = ROOT / "docs" / "first_deployment.py"


def make_first_deployment(world: World) -> subprocess.CompletedProcess[str]:
    accounts = Path(world.environment["BYTEOR_CLOUD_DATA_DIR"]) / "demo" / "accounts.json"
    # -I: nothing but Python's own library, as on a machine without this project's environment
    command = [sys.executable, "-I", str(SCRIPT), "--url", world.api, "--accounts", str(accounts), "--seconds", "90"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_first_deployment_of_the_readme_runs_on_all_agents_of_the_demo(tmp_path: Path) -> None:
    with running(tmp_path, "--demo", migrated=False) as world:
        until(lambda: "Sign in" in log_text(tmp_path / "up.log"), 90)
        done = make_first_deployment(world)
        assert done.returncode == 0, done.stdout + done.stderr
        agents = re.findall(r"(till-\w+): (\w+)", done.stdout)
        assert agents
        assert {status for _, status in agents} == {"activated"}
        assert {name for name, _ in agents} == {"till-berlin", "till-lyon", "till-porto"}
        assert done.stdout.rstrip().endswith("active")
        for home in (Path(world.environment["BYTEOR_CLOUD_DATA_DIR"]) / "demo" / "agents").iterdir():
            out = home / "data" / "hello.jsonl"
            record = until(lambda out=out: json_lines(out))[0]
            assert "order_id" in record
            assert "customer" not in record
        # once more: the same draft's name and version are no obstacle
        again = make_first_deployment(world)
        assert again.returncode == 0, again.stdout + again.stderr


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[str]:
    """A server that refuses every call as the API does."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status": 401, "code": "token_expired"}'
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_it_reports_in_one_line_what_is_missing_or_refused(tmp_path: Path, refusing: str) -> None:
    def error_line(url: str, accounts: Path) -> str:
        command = [sys.executable, "-I", str(SCRIPT), "--url", url, "--accounts", str(accounts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        return line

    accounts = tmp_path / "accounts.json"
    assert "make up" in error_line(refusing, accounts)
    accounts.write_text(json.dumps([{"email": f"{who}@demo.example", "token": "t"} for who in ("oleg", "rita")]))
    assert "make up" in error_line(f"http://127.0.0.1:{free_port()}", accounts)
    assert json.loads(error_line(refusing, accounts))["code"] == "token_expired"
