"""What the agent keeps on disk: one folder, files 0600, each replaced as a whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from apps.runtime.faults import fault_point
from apps.runtime.trust import KeySet, TrustedKey, TrustError


class StateError(Exception):
    """The state folder can't be used; the text says why in one line."""


class State:
    """The agent's folder. Safe to use from several threads; one process at a time."""

    def __init__(self, root: Path, *, lock: bool = True) -> None:
        self.root = root.absolute()
        self._mutex = threading.RLock()
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            (root / "bundles").mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(f"{root} can't be used: {error.strerror}") from error
        self._lock_file = None
        if lock:
            self._lock_file = (root / "lock").open("a+")
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StateError(f"another agent uses {root}") from None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a file as a whole: written beside, synced, renamed, the folder synced. OSError: the file is what it was."""
        path = self.root / name
        draft = path.with_name(f".{path.name}.new")
        with self._mutex:
            try:
                handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(handle, "wb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
                fault_point("agent.state.before_rename")
                draft.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    draft.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)

    def write(self, name: str, value: object) -> None:
        """Replace a JSON file."""
        self.write_bytes(name, json.dumps(value, indent=1, sort_keys=True).encode())

    def read(self, name: str) -> Any:
        """A JSON file's value; None when there is none. StateError when it is damaged."""
        try:
            with self._mutex:
                return json.loads((self.root / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raise StateError(f"{self.root / name} is damaged") from None

    def remove(self, name: str) -> None:
        """Remove a file, for good. OSError when that can't be."""
        with self._mutex:
            (self.root / name).unlink(missing_ok=True)
            _sync_folder(self.root)

    # --- keys ---

    def keys(self) -> KeySet | None:
        """The key set trusted so far."""
        value = self.read("keys.json")
        if value is None:
            return None
        keys = tuple(
            TrustedKey(k["kid"], bytes.fromhex(k["public"]), k["status"], k["not_before"], k["not_after"])
            for k in value["keys"]
        )
        return KeySet(value["org_id"], value["version"], keys)

    def trust(self, keys: KeySet) -> None:
        """Believe `keys` from now on."""
        listed = [
            {
                "kid": k.kid,
                "public": k.public.hex(),
                "status": k.status,
                "not_before": k.not_before,
                "not_after": k.not_after,
            }
            for k in keys.keys
        ]
        self.write("keys.json", {"org_id": keys.org_id, "version": keys.version, "keys": listed})

    # --- bundles ---

    def bundle_path(self, sha256: str) -> Path:
        """Where the archive with this digest is kept."""
        if len(sha256) != 64 or any(c not in "0123456789abcdef" for c in sha256):
            raise TrustError("bad_directive", "bundle_sha256 is not 64 hex digits")
        return self.root / "bundles" / f"{sha256}.tar"

    def keep_bundle(self, sha256: str, data: bytes) -> None:
        self.write_bytes(f"bundles/{self.bundle_path(sha256).name}", data)

    def forget_bundle(self, sha256: str) -> None:
        """Remove one archive, if it is there."""
        with contextlib.suppress(OSError):
            self.bundle_path(sha256).unlink(missing_ok=True)

    def forget_bundles(self, keep: set[str]) -> None:
        """Remove archives that nothing names any more."""
        for path in (self.root / "bundles").glob("*.tar"):
            if path.stem not in keep:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have a rename or a removal outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
