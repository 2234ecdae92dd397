"""Where a file source left off, in the agent's state folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apps.runtime.agent.pipeline.known import Known, Print
from apps.runtime.agent.state import State


class Kept(NamedTuple):
    """The files in hand, in the order in which they are read, and the last of those that were read to their end and closed."""

    files: Sequence[Known] = ()
    finished: Sequence[Known] = ()


class Positions:
    """What is kept of the files of one ingress path across restarts. `path` is relative to the data folder `root`."""

    def __init__(self, root: Path, path: str, state: State) -> None:
        self._root, self._path, self._state = root, path, state
        self._name = _name_for(root / path)

    def load(self) -> Kept:
        """What was kept last; nothing when nothing was, or when it is damaged: then the file is read from its start."""
        for name in self._names():
            kept = self._state.recall(name, self._parsed)
            if kept is not None:
                return kept
        return Kept()

    def save(self, files: Sequence[Known], finished: Sequence[Known]) -> None:
        """Replace what is kept. OSError when that can't be done: then it is what it was."""
        value: dict[str, object] = {
            "files": [known.as_dict() for known in files],
            "finished": [known.as_dict() for known in finished],
        }
        if files:  # as agents read it that know a file by its inode alone
            value |= {"path": str(self._root / self._path), "inode": files[-1].inode, "position": files[-1].position}
        self._state.write(self._name, value)

    def _names(self) -> Iterable[str]:
        """The name of its own file in the state folder, then those that earlier versions gave it."""
        path = self._root / self._path
        yield self._name
        yield _name_for(path.resolve())
        yield f"position-{path.name}.json"

    def _parsed(self, value: Any) -> Kept:
        """ValueError, TypeError or KeyError for what is damaged."""
        if "files" in value:
            return Kept(*([Known.from_dict(item) for item in value[name]] for name in ("files", "finished")))
        path = self._root / self._path
        if value["path"] not in {str(path), str(path.resolve())}:
            return Kept()
        # as agents kept it that knew a file by its inode alone
        nothing = Print.of(b"")
        known = {"path": self._path, "device": 0, "head": [0, nothing.sha256], "edge": [0, nothing.sha256], "since": 0}
        return Kept([Known.from_dict({**known, "inode": value["inode"], "position": value["position"]})])


def _name_for(path: Path) -> str:
    return f"position-{path.name[:80]}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.json"
