"""The key set that this host trusts, and how it follows newer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apps.runtime.agent.state import State
from apps.runtime.trust import KeySet, TrustError, accept_keyset


class Keyring:
    """`fetch(version)` answers what the control plane has above that version, as GET …/signing-keys does."""

    def __init__(self, state: State, fetch: Callable[[int], Any], say: Callable[[str], None]) -> None:
        keys = state.keys()
        if keys is None:
            raise TrustError("no_keys", "the state folder has no key set")
        self.keys: KeySet = keys
        self._state, self._fetch, self._say = state, fetch, say
        self._announced = keys.version

    def note(self, version: object) -> None:
        """The control plane says that its newest set has this version: fetch it, once."""
        if isinstance(version, int) and version > self._announced:
            self.follow()
            self._announced = version

    def follow(self) -> None:
        """Fetch and accept the key sets above ours, one by one; a bad one is refused and ours stays."""
        answer = self._fetch(self.keys.version)
        try:
            keys = accept_keyset(self.keys, answer["envelopes"])
        except (TrustError, KeyError, TypeError) as error:
            self._say(f"a key set was refused: {error}")
            return
        if keys != self.keys:
            self._state.trust(keys)
            self.keys = keys
            self._say(f"key set version {keys.version} accepted")
