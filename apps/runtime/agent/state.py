"""What the agent keeps on disk: one folder, files 0600, each replaced as a whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from apps.runtime.faults import fault_point
from apps.runtime.trust import KeySet, TrustedKey, TrustError, unique_members

T = TypeVar("T")


class StateError(Exception):
    """The state folder can't be used; the text is one line with the reason."""


class State:
    """The agent's folder, which belongs to its user and which no other user may write to. Safe to use from several threads.

    With `lock` one process at a time; without `create` it must exist. `log` gets a line for each damaged file that is
    renamed. Raises StateError.
    """

    def __init__(
        self, root: Path, *, lock: bool = True, create: bool = True, log: Callable[[str], None] = lambda text: None
    ) -> None:
        self.root = root.absolute()
        self.log = log
        self._mutex = threading.RLock()
        try:
            if create:
                root.mkdir(parents=True, exist_ok=True, mode=0o700)
                (root / "bundles").mkdir(exist_ok=True, mode=0o700)
            self._check_folder(root.stat(), others_may_look=not lock)
        except OSError as error:
            raise StateError(f"{root} can't be used: {error.strerror}") from error
        self._lock_file = None
        if lock:
            self._lock_file = (root / "lock").open("a+")
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock_file.close()
                raise StateError(f"another agent uses {root}") from None

    def _check_folder(self, found: os.stat_result, *, others_may_look: bool) -> None:
        """A user that may write here could make the agent trust another key."""
        if not stat.S_ISDIR(found.st_mode):
            raise StateError(f"{self.root} is no folder")
        if found.st_uid != os.geteuid() and not (others_may_look and os.geteuid() == 0):
            raise StateError(f"{self.root} belongs to another user")
        if found.st_mode & 0o022:
            raise StateError(f"{self.root} may be written to by others: chmod go-w it, and see what is in it")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a file as a whole: written to a temporary file, synced, renamed, the folder synced. OSError: the file is what it was."""
        path = self.root / name
        draft = path.with_name(f".{path.name}.new")
        with self._mutex:
            try:
                draft.unlink(missing_ok=True)  # of a kill; never written through, whatever it is
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                handle = os.open(draft, flags, 0o600)
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
                return json.loads((self.root / name).read_bytes(), object_pairs_hook=unique_members)
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            raise StateError(f"{self.root / name} is damaged") from None

    def recall(self, name: str, parse: Callable[[Any], T]) -> T | None:
        """What `parse` makes of a JSON file that the agent can do without; None when there is none.

        One that is damaged, or of which `parse` raises ValueError, TypeError, KeyError or AttributeError, is renamed to
        `NAME.damaged`, which is logged, and counts as missing. StateError when it can't be renamed.
        """
        try:
            value = self.read(name)
            return None if value is None else parse(value)
        except (StateError, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            self.quarantine(name)
            return None

    def quarantine(self, name: str) -> None:
        """Rename a damaged file to `NAME.damaged`. StateError when that can't be."""
        path = self.root / name
        try:
            with self._mutex:
                path.replace(path.with_name(f"{path.name}.damaged"))
        except OSError as error:
            raise StateError(f"{path} is damaged and can't be set aside: {error.strerror}") from error
        self.log(f"{name} was damaged and is set aside as {path.name}.damaged")

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
        try:
            keys = tuple(
                TrustedKey(k["kid"], bytes.fromhex(k["public"]), k["status"], k["not_before"], k["not_after"])
                for k in value["keys"]
            )
            return KeySet(value["org_id"], int(value["version"]), keys)
        except (TypeError, KeyError, ValueError):
            raise StateError(f"{self.root / 'keys.json'} is damaged") from None

    def trust(self, keys: KeySet) -> None:
        """Trust `keys` from now on."""
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

    def kept_bundle(self, sha256: str) -> bytes | None:
        """The archive with this digest, if it is on disk and whole; one that is damaged is removed, which is logged."""
        path = self.bundle_path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.log(f"the kept bundle {sha256[:12]} can't be read: {error.strerror}")
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        self.log(f"the kept bundle {sha256[:12]} is damaged")
        self.forget_bundle(sha256)
        return None

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
