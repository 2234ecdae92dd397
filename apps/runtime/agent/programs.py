"""Which program this host runs: the one it was installed with, or a newer one that proved itself here.

In the state folder, `programs/`: the programs by their digest; `chosen.json`, the newest that started and whose heartbeat the
control plane took; `trial.json`, one that is on trial; `refused.json`, those that did not stand. The installed program is never
touched, and is what runs whenever anything about another one is in doubt.
"""

from __future__ import annotations

import hashlib
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.runtime.agent import VERSION
from apps.runtime.agent.state import State
from apps.runtime.trust import version_tuple

MOST_TRIALS = 3
AGAIN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Program:
    """A program on this host. `path` None: the one that was installed."""

    version: str
    sha256: str | None = None
    path: Path | None = None

    def command(self) -> list[str]:
        """How it is started, up to its own arguments. Isolated: nothing of the environment or the working folder is imported."""
        if self.path is not None:
            return [sys.executable, "-I", str(self.path)]
        own = Path(sys.argv[0])
        if zipfile.is_zipfile(own):
            return [sys.executable, "-I", str(own.resolve())]
        return [sys.executable, "-m", "apps.runtime.agent"]


INSTALLED = Program(VERSION)


class Programs:
    """The programs that a state folder holds. What is damaged there is as if it were not."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.folder = state.root / "programs"

    def _file(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.pyz"

    def _read(self, name: str) -> dict[str, Any]:
        value = self._state.read(f"programs/{name}")
        return value if isinstance(value, dict) else {}

    def _program(self, name: str) -> Program | None:
        """The program that a file names, if it is newer than the installed one and its bytes are still the ones that were verified."""
        value = self._read(name)
        version, sha256 = value.get("version"), value.get("sha256")
        if not isinstance(version, str) or not isinstance(sha256, str) or len(sha256) != 64:
            return None
        try:
            newer = version_tuple(version) > version_tuple(VERSION)
            right = hashlib.sha256(self._file(sha256).read_bytes()).hexdigest() == sha256
        except (OSError, ValueError):
            return None
        return Program(version, sha256, self._file(sha256)) if newer and right else None

    def chosen(self) -> Program:
        """What runs when nothing is on trial."""
        return self._program("chosen.json") or INSTALLED

    def on_trial(self) -> Program | None:
        """What is on trial."""
        return self._program("trial.json")

    def keep(self, version: str, sha256: str, data: bytes) -> Program:
        """Have a verified program on disk. OSError when the disk is full."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._state.write_bytes(f"programs/{sha256}.pyz", data)
        return Program(version, sha256, self._file(sha256))

    def try_next(self, program: Program) -> None:
        """Put it on trial at the next start."""
        self._state.write("programs/trial.json", {"version": program.version, "sha256": program.sha256})

    def proven(self, program: Program) -> None:
        """It has passed its trial: it runs from now on, and the one before it is kept."""
        former = self.chosen()
        self._state.write("programs/chosen.json", {"version": program.version, "sha256": program.sha256})
        self._state.remove("programs/trial.json")
        for path in self.folder.glob("*.pyz"):
            if path.stem not in (program.sha256, former.sha256):
                path.unlink(missing_ok=True)

    def refuse(self, sha256: str, why: str) -> None:
        """It did not stand: not again before an hour, two, and never after the third time."""
        refused = self._read("refused.json")
        times = self.times_refused(sha256) + 1
        entry = {"times": times, "again_at": time.time() + AGAIN_SECONDS * times, "why": why[:500]}
        self._state.write("programs/refused.json", {**dict(list(refused.items())[-20:]), sha256: entry})
        self._state.remove("programs/trial.json")

    def times_refused(self, sha256: str) -> int:
        entry = self._read("refused.json").get(sha256)
        return int(entry.get("times", 0)) if isinstance(entry, dict) else 0

    def may_try(self, sha256: str) -> bool:
        """Has it not been refused, or not too often and not just now?"""
        entry = self._read("refused.json").get(sha256)
        if not isinstance(entry, dict):
            return True
        return self.times_refused(sha256) < MOST_TRIALS and time.time() >= float(entry.get("again_at", 0))

    def drop_left_behind(self) -> str | None:
        """Refuse a program whose trial was cut off; its digest."""
        sha256 = self._read("trial.json").get("sha256")
        if not isinstance(sha256, str):
            return None
        self.refuse(sha256, "the host or the agent was ended during its trial")
        return sha256

    def as_dict(self) -> dict[str, Any]:
        """For `status`."""
        chosen = self.chosen()
        return {"version": chosen.version, "sha256": chosen.sha256, "refused": self._read("refused.json")}
