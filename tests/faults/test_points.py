"""Every point has a case and every case a point; the machinery works as described and is absent in hosted profiles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from apps.runtime.faults import VARIABLE
from tests.faults.cases import CASES
from tests.faults.conftest import EVERY, VENDORS
from tests.faults.killing import cases_on
from tests.faults.points import PAGE, page, points
from tests.flows.world import ROOT, until


def _run(folder: Path | None, code: str) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    if folder is not None:
        environment[VARIABLE] = str(folder)
    program = f"from apps.runtime.faults import fault_point\n{code}"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE)


def _arm(folder: Path, **armed: object) -> None:
    (folder / "armed").write_text(json.dumps(armed))


def test_every_point_has_a_case_and_every_case_a_point() -> None:
    assert {case.point for case in CASES} == set(points())
    assert len(points()) >= 40


def test_the_suite_walks_to_every_point_once() -> None:
    shares = [param.values[0].point for vendor in VENDORS for param in cases_on(vendor)]
    assert set(shares) == set(points())
    assert EVERY or len(shares) == len(points())


def test_the_page_lists_them() -> None:
    assert PAGE.read_text() == page(PAGE.read_text()), "python -m tests.faults.points --write"


def test_no_case_is_there_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_process_that_reaches_it_the_third_time_dies_and_leaves_its_mark(tmp_path: Path) -> None:
    _arm(tmp_path, point="here", skip=2)
    process = _run(
        tmp_path, "for n in range(9):\n    fault_point('elsewhere'); print(n, flush=True); fault_point('here')"
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert out.split() == [b"0", b"1", b"2"]
    assert json.loads((tmp_path / "hit").read_text()) == {"point": "here", "action": "kill", "pid": process.pid}
    assert not (tmp_path / "armed").exists()


def test_of_several_processes_one_dies(tmp_path: Path) -> None:
    _arm(tmp_path, point="here")
    ready = f"import pathlib\nwhile not pathlib.Path({str(tmp_path)!r}, 'start').exists(): pass\n"
    processes = [_run(tmp_path, f"{ready}fault_point('here')") for _ in range(4)]
    (tmp_path / "start").touch()
    for process in processes:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in processes) == [-signal.SIGKILL, 0, 0, 0]


def test_it_waits_there_until_it_is_let_go(tmp_path: Path) -> None:
    _arm(tmp_path, point="here", action="pause")
    process = _run(tmp_path, "fault_point('here')\nprint('went on')")
    until((tmp_path / "hit").exists)
    assert process.poll() is None
    (tmp_path / "go").touch()
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, b"went on\n")


def test_nothing_is_looked_at_without_the_variable() -> None:
    process = _run(
        None, "from apps.runtime import faults\nfaults._reached = None\nfault_point('here')\nprint('went on')"
    )
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, b"went on\n")


def test_a_hosted_profile_does_not_start_with_it(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_")}
    environment |= {"BYTEOR_CLOUD_PROFILE": "staging", VARIABLE: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "manage.py", "check"], cwd=ROOT, env=environment, capture_output=True, check=False, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"byteor: {VARIABLE} is for tests: it is refused in this profile\n"
