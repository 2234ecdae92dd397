"""A newer agent is verified before it is run, tried before it is chosen, and asked for only where the host allows it.

The control plane offers the agent that it serves in a release: signed by a key of the organization's key set, good for ten
minutes. The host takes it only if its version is above the one that runs, its size and digest are the signed ones, and it
can read this host's state. Then this process ends with `EXIT_UPGRADE`, and the supervisor starts the new one on trial.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from apps.runtime.agent import VERSION
from apps.runtime.agent.client import Refused
from apps.runtime.agent.enroll import identity
from apps.runtime.agent.keyring import Keyring
from apps.runtime.agent.programs import Program, Programs
from apps.runtime.agent.state import State, StateError
from apps.runtime.bundle import read_bundle, verify_bundle
from apps.runtime.trust import AgentRelease, TrustError, verify_release, version_tuple

EXIT_UPGRADE = 86
SELF_CHECK_SECONDS = 60.0


def check_state(state: State) -> None:
    """Read all that another version kept here, and verify what is active. StateError, TrustError or OSError when that can't be."""
    me = identity(state)
    if me is None:
        raise StateError("this agent has not enrolled")
    keyring = Keyring(state, lambda version: {}, lambda text: None)
    active = state.read("active.json")
    if active is not None:
        sha256 = active["bundle_sha256"]
        verify_bundle(
            read_bundle(state.bundle_path(sha256).read_bytes()),
            keys=keyring.keys_of_what_ran(),
            expected_sha256=sha256,
            environment_id=me.environment_id,
            posture=me.posture,
            org_id=me.org_id,
            project_id=me.project_id,
        )


class Upgrader:
    """Looks for a newer agent. `call` is a request below this agent's own path."""

    def __init__(self, state: State, keyring: Keyring, call: Callable[..., Any], log: Callable[[str], None]) -> None:
        self._state, self._keyring, self._call, self._log = state, keyring, call, log
        self.programs = Programs(state)
        self._last_logged = ""

    def look(self, quiet: Callable[[], bool]) -> bool:
        """Fetch and verify what is offered; True when it is on disk and is to be tried. Raises Unreachable when there is no answer.

        Nothing is begun unless this host is `quiet`: no switch, no report that waits, what runs has been well for a while.
        """
        if not quiet():
            return False
        try:
            release = self._offered()
            if release is None or version_tuple(release.version) <= version_tuple(VERSION):
                return False
            if not self.programs.may_try(release.sha256):
                return False
            program = self._fetched(release)
            self.self_check(program)
        except (TrustError, Refused, OSError) as error:
            self._log_once(f"an upgrade was refused: {error}")
            return False
        if not quiet():
            return False
        self.programs.try_next(program)
        self._log(f"agent {program.version} is verified and will be tried in place of {VERSION}")
        return True

    def _log_once(self, words: str) -> None:
        if words != self._last_logged:
            self._log(words)
        self._last_logged = words

    def _offered(self) -> AgentRelease | None:
        answer = self._call("GET", "/release")
        if answer.status == 204:
            return None
        body = answer.json()
        envelope = body.get("envelope") if isinstance(body, dict) else None
        now_ms = int(time.time() * 1000)
        try:
            return verify_release(envelope, self._keyring.keys, now_ms=now_ms)
        except TrustError as error:
            if error.code != "unknown_key":
                raise
            self._keyring.follow()
            return verify_release(envelope, self._keyring.keys, now_ms=now_ms)

    def _fetched(self, release: AgentRelease) -> Program:
        data = bytes(self._call("GET", release.path, timeout=120, max_bytes=release.size).body)
        if len(data) != release.size or hashlib.sha256(data).hexdigest() != release.sha256:
            raise TrustError("release_digest_mismatch", "the program is not the one that was signed")
        return self.programs.keep(release.version, release.sha256, data)

    def self_check(self, program: Program) -> None:
        """Have it read this host's state, and print its version. Raises TrustError `release_self_check`."""
        try:
            done = subprocess.run(
                [*program.command(), "self-check", "--state-dir", str(self._state.root)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SELF_CHECK_SECONDS,
                check=False,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            )
            answer = json.loads(done.stdout) if done.returncode == 0 else {}
        except (subprocess.TimeoutExpired, ValueError):
            answer = {}
        if not isinstance(answer, dict) or answer.get("version") != program.version:
            self._refuse(program, "its self-check failed")
            raise TrustError("release_self_check", "the new program could not read this host's state")

    def _refuse(self, program: Program, why: str) -> None:
        if program.sha256 is not None:
            self.programs.refuse(program.sha256, why)
