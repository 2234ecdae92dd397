"""The key set that this host trusts, and how it follows newer ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from apps.runtime.agent.state import State
from apps.runtime.faults import fault_point
from apps.runtime.trust import KeySet, TrustedKey, TrustError, accept_keyset

RETRY_SECONDS = 10.0
MAX_KEY_SETS_BYTES = 16 * 1024 * 1024
_HIGHEST_VERSION = 2**31 - 1


class Keyring:
    """`fetch(version)` answers what the control plane has above that version, as GET …/signing-keys does.

    `keys` is always a set that was accepted and is on disk. `announced` is the highest version that the control plane ever
    named, accepted or not. Safe from several threads.
    """

    def __init__(self, state: State, fetch: Callable[[int], Any], log: Callable[[str], None]) -> None:
        keys = state.keys()
        if keys is None:
            raise TrustError("no_keys", "the state folder has no key set")
        self.keys: KeySet = keys
        self.announced = keys.version
        self._state, self._fetch, self._log = state, fetch, log
        self._turn = threading.RLock()
        self._tried_at = 0.0
        self._last_refusal = ""

    def note(self, version: object) -> None:
        """Follow a newer key set that the control plane announced.

        A version that was tried and could not be followed is tried again at most every ten seconds.
        """
        if not isinstance(version, int) or isinstance(version, bool) or not 0 < version <= _HIGHEST_VERSION:
            return
        with self._turn:
            news = version > self.announced
            stuck = version > self.keys.version and time.monotonic() - self._tried_at >= RETRY_SECONDS
            if news or stuck:
                self.follow()
                self.announced = max(version, self.announced)

    def follow(self) -> None:
        """Fetch the key sets above ours and accept them one by one, each kept before the next is looked at.

        At the first that is not signed by the one before, skips a version, goes back, or is of another organization, it stops:
        what was accepted until then stays, and nothing after it is accepted.
        """
        with self._turn:
            self._tried_at = time.monotonic()
            answer = self._fetch(self.keys.version)
            listed = answer.get("envelopes") if isinstance(answer, dict) else None
            for envelope in listed if isinstance(listed, list) else ():
                try:
                    keys = accept_keyset(self.keys, [envelope])
                except TrustError as error:
                    self._refuse(error)
                    return
                if keys != self.keys:
                    fault_point("agent.key_set.accepted")
                    self._state.trust(keys)
                    self.keys = keys
                    self._log(f"key set version {keys.version} accepted")

    def _refuse(self, error: TrustError) -> None:
        refusal = f"a key set was refused: {error}"
        if refusal != self._last_refusal:
            self._log(refusal)
        self._last_refusal = refusal

    def keys_of_what_ran(self) -> Mapping[str, TrustedKey]:
        """The keys by which a bundle that this host activated once is checked before it starts again.

        A key retired or revoked since then still counts: it was good when the bundle was verified, and the archive is the same
        by its digest. What runs keeps running until something else is deployed, a restart included.
        """
        return {
            kid: replace(key, status="active") if key.status != "active" else key
            for kid, key in self.keys.by_kid().items()
        }
