"""Named points at which a process can be made to die or to wait, for the tests that kill.

Off unless the environment names a folder in `BYTEOR_FAULTS` when the process starts; a point then costs one look at a
boolean. The folder belongs to the user that runs the test:

- `armed`, written by the test: `{"point": name, "skip": n, "action": "kill" | "pause" | "fail"}`. Of all processes that share the
  folder exactly one takes it, the one that reaches the point after `n` others did.
- `hit`, written by the process that took it, before anything happens: `{"point", "action", "pid"}`.
- `kill`: the process ends by SIGKILL, as a machine that loses its power would end it: nothing is caught, nothing closed.
- `pause`: the thread stands there until the file `go` appears.
- `fail`: RuntimeError is raised there, as an unforeseen error would be.

It can do no more than the user that sets the environment of a process could do to it anyway. The control plane refuses to start
with the variable set in a hosted profile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from pathlib import Path

VARIABLE = "BYTEOR_FAULTS"
_LOOK_EVERY = 0.01

_folder = os.environ.get(VARIABLE, "")
_on = bool(_folder)


def fault_point(name: str) -> None:
    """Something may happen here when a test has asked for it. `name` is a literal: `room.what.when`, used once."""
    if _on:
        _reached(name, Path(_folder))


def _reached(name: str, folder: Path) -> None:
    if not (folder / "armed").exists():
        return
    action = _take(name, folder)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fail":
        raise RuntimeError("a test asked for this error")
    while action and not (folder / "go").exists():
        time.sleep(_LOOK_EVERY)


def _take(name: str, folder: Path) -> str | None:
    """The action asked for here, if it is for this process and now; the process that takes it takes it from all others."""
    with contextlib.suppress(FileNotFoundError), (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        armed = json.loads((folder / "armed").read_text())
        if armed["point"] != name:
            return None
        if armed.get("skip"):
            _replace(folder / "armed", {**armed, "skip": armed["skip"] - 1})
            return None
        action = str(armed.get("action", "kill"))
        _replace(folder / "hit", {"point": name, "action": action, "pid": os.getpid()})
        (folder / "armed").unlink()
        return action
    return None


def _replace(path: Path, value: object) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value))
    draft.replace(path)
