"""From a directive to what runs: verify the directive, fetch, verify the bundle, switch, report. Nothing runs that was not verified.

The steps of an activation are functions of their own, in this order: `_verified_directive`, `fetch`, `verified`, then the runner's
`prepare`, `keep_archive`, `stop_former`, `start_new`, `record_active`, `forget_others`, then `remember`. A directive is
remembered only once it was carried out or refused for good: ended by force before, it is followed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from apps.runtime import trust
from apps.runtime.agent.client import Client, Refused, Unreachable
from apps.runtime.agent.enroll import Identity, as_uuid
from apps.runtime.agent.keyring import Keyring
from apps.runtime.agent.limits import ActivationError
from apps.runtime.agent.outbox import Outbox
from apps.runtime.agent.runner import Runner
from apps.runtime.agent.state import State
from apps.runtime.bundle import MAX_BUNDLE_BYTES, VerifiedBundle, read_bundle, verify_bundle
from apps.runtime.faults import fault_point
from apps.runtime.trust import Directive, KeySet, TrustedKey, TrustError

MAX_REASON_BYTES = 4000
_CLOCK_CODES = ("directive_expired", "directive_not_yet_valid")
_KEY_CODES = ("key_revoked", "directive_by_retired_key")


FIRST_AGAIN, LONGEST_AGAIN = 1.0, 60.0
"""Seconds until what was active here, and is not on this host any more, is asked for again: doubled each time."""


class _NotThere(Exception):
    """What was active here can't be fetched now. It is asked for again, since only the control plane can give it back."""


class Follower:
    """Carries out directives, one at a time: the caller sees to that."""

    def __init__(
        self,
        *,
        state: State,
        me: Identity,
        client: Client,
        keyring: Keyring,
        runner: Runner,
        outbox: Outbox,
        call: Callable[..., Any],
        log: Callable[[str], None],
        tail: Callable[[], str],
    ) -> None:
        self.state, self.me, self.keyring, self.runner, self.outbox = state, me, keyring, runner, outbox
        self._clock, self._call, self._log, self._tail = client.clock, call, log, tail
        self.last_seq, digest, highest = state.recall("memory.json", _remembered) or (0, None, 0)
        self._last_digest: str | None = digest
        # active.json is written first, so it may know more
        self.highest = max(highest, int((runner.active or {}).get("sequence") or 0))
        self._refused: str | None = None
        self._doubted: str | None = None
        self._not_there: tuple[int, str] | None = None
        self._tries, self._again_at = 0, 0.0
        self.busy = False

    def forget_last(self) -> None:
        """Nothing runs here: the next directive is followed from the start, even one that was followed before."""
        self._last_digest = None

    # --- verifying ---

    def obey(self, envelope: object, plain: object) -> float:
        """Carry out the directive, if it verifies. Seconds to pause before asking again."""
        try:
            directive = self._verified_directive(envelope)
        except TrustError as error:
            return self._refuse(error, plain)
        if (directive.directive_seq, directive.content_digest()) == (self.last_seq, self._last_digest):
            return 0.0
        asked = (directive.directive_seq, directive.content_digest())
        if asked == self._not_there and time.monotonic() < self._again_at:
            return 1.0
        fault_point("agent.directive.believed")
        self.busy = True
        try:
            self._carry_out(directive)
        except _NotThere as error:
            return self._ask_again_later(asked, str(error))
        except Unreachable as error:
            self._log(f"not carried out yet: {error}")
            return 1.0
        finally:
            self.busy = False
        fault_point("agent.directive.carried_out")
        self._not_there = None
        self.last_seq, self._last_digest = directive.directive_seq, directive.content_digest()
        self.remember()
        return 0.0

    def _ask_again_later(self, asked: tuple[int, str], why: str) -> float:
        self._tries = self._tries + 1 if asked == self._not_there else 1
        self._not_there = asked
        pause = min(FIRST_AGAIN * 2 ** min(self._tries - 1, 10), LONGEST_AGAIN)
        self._again_at = time.monotonic() + pause
        if self.runner.still_missing(f"it can't be fetched again either: {why}"):
            self._log(f"what shall run here can't be fetched, and is asked for again: {why}")
        return 1.0

    def _verified_directive(self, envelope: object) -> Directive:
        def check() -> Directive:
            return trust.verify_directive(
                envelope,
                self.keyring.keys,
                environment_id=self.me.environment_id,
                agent_id=self.me.agent_id,
                now_ms=int(time.time() * 1000),
                last_seq=self.last_seq,
                last_content_digest=self._last_digest,
            )

        try:
            return check()
        except TrustError as error:
            if error.code != "unknown_key":
                raise
            self.keyring.follow()
            return check()

    def _refuse(self, error: TrustError, plain: object) -> float:
        claimed = plain if isinstance(plain, dict) else {}
        # it is signed anew each time it is asked for: the times in it do not make it another one
        named = [claimed.get(name) for name in ("directive_seq", "for_deployment_id", "bundle_sha256")]
        digest = hashlib.sha256(repr((error.code, named)).encode("utf-8", "surrogatepass")).hexdigest()
        if error.code in _KEY_CODES and digest != self._doubted:
            # signed just before the key was taken out of use, and on its way since: asked again, it comes by the new key
            self._doubted = digest
            self._log(f"directive refused for now: {error}")
            return 2.0
        if digest != self._refused:
            self._refused = digest
            reason = f"{error.code}: {error.message}"
            if error.code in _CLOCK_CODES and self._clock.words():
                reason += f"; {self._clock.words()}"
            self._log(f"directive refused: {reason}")
            with contextlib.suppress(ValueError):
                self.report("failed", None, to=as_uuid(claimed.get("for_deployment_id")), reason=reason, unproven=True)
        return 5.0

    def remember(self) -> None:
        """Keep what was followed last, and the highest sequence that was ever active. OSError when that can't be kept."""
        self.state.write(
            "memory.json",
            {
                "directive_seq": self.last_seq,
                "content_digest": self._last_digest,
                "highest_sequence": self.highest,
            },
        )

    # --- reporting ---

    def report(
        self,
        status: str,
        directive: Directive | None,
        *,
        to: str | None,
        reason: str = "",
        unproven: bool = False,
        **more: Any,
    ) -> None:
        """Queue a report, then send what is queued, oldest first."""
        if to is None:
            return
        body = {
            "status": status,
            "bundle_sha256": directive.bundle_sha256 if directive else None,
            "sequence": directive.sequence if directive else None,
            "reason": reason.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore"),
            "log_tail": self._tail() if status in ("failed", "activated", "rolled_back") else "",
            **more,
        }
        self.outbox.put(to, body, unproven=unproven)

    # --- doing ---

    def _carry_out(self, directive: Directive) -> None:
        if directive.directive == "none":
            return
        if directive.directive == "stop":
            self.runner.stop()
            self.report("stopped", None, to=directive.for_deployment_id)
            return
        try:
            self._activate(directive)
        except (TrustError, ActivationError) as error:
            self._log(f"refused: {error}")
            self.report("failed", directive, to=directive.for_deployment_id, reason=str(error))

    def _activate(self, directive: Directive) -> None:
        to, sha256 = directive.for_deployment_id, str(directive.bundle_sha256)
        done = "rolled_back" if directive.directive == "rollback" else "activated"
        sequence = int(directive.sequence or 0)
        if sequence < self.highest and directive.directive != "rollback":
            raise TrustError(
                "sequence_older", f"sequence {sequence} is below {self.highest} without a rollback directive"
            )
        wanted = {"deployment_id": directive.deployment_id, "bundle_sha256": sha256, "sequence": sequence}
        if self.runner.runs_well(wanted):
            self.report(done, directive, to=to, reason="it ran already")
            return
        try:
            archive = self.fetch(directive, sha256)
        except (Unreachable, TrustError) as error:
            if self.runner.is_missing(sha256) and getattr(error, "code", "fetch_refused") == "fetch_refused":
                raise _NotThere(str(error)) from error
            raise
        fault_point("agent.bundle.fetched")
        self.report("fetched", directive, to=to)
        bundle = self.verified(archive, sha256, directive)
        self.report("verified", directive, to=to)
        fault_point("agent.bundle.verified")
        self.runner.switch(bundle, archive, wanted)
        fault_point("agent.switch.done")
        self.highest = max(self.highest, sequence)
        self._log(f"{done} bundle {sha256[:12]}, sequence {sequence}")
        self.report(done, directive, to=to, tuning=self.runner.tuning())

    def fetch(self, directive: Directive, sha256: str) -> bytes:
        """The archive, from this host's disk if it is there, whole. Unreachable, or TrustError `fetch_refused`."""
        kept = self.state.kept_bundle(sha256)
        if kept is not None:
            return kept
        try:
            answer = self._call(
                "GET", f"/deployments/{directive.deployment_id}/bundle", timeout=60, max_bytes=MAX_BUNDLE_BYTES
            )
        except Refused as error:
            if error.status == 401:
                raise Unreachable(str(error)) from error
            raise TrustError("fetch_refused", str(error)) from error
        return bytes(answer.body)

    def verified(self, archive: bytes, sha256: str, directive: Directive) -> VerifiedBundle:
        """The bundle in `archive`, everything about it checked. Raises TrustError."""
        return self._checked(archive, sha256, self.keyring.keys, directive)

    def verified_again(self, archive: bytes, sha256: str) -> VerifiedBundle:
        """As `verified`, for what this host activated once and no directive has to name (`Keyring.keys_of_what_ran`)."""
        return self._checked(archive, sha256, self.keyring.keys_of_what_ran(), None)

    def _checked(
        self, archive: bytes, sha256: str, keys: KeySet | Mapping[str, TrustedKey], directive: Directive | None
    ) -> VerifiedBundle:
        return verify_bundle(
            read_bundle(archive),
            keys=keys,
            expected_sha256=sha256,
            environment_id=self.me.environment_id,
            posture=self.me.posture,
            org_id=self.me.org_id,
            project_id=self.me.project_id,
            deployment_id=directive.deployment_id if directive else None,
            sequence=directive.sequence if directive else None,
        )


def _remembered(value: Any) -> tuple[int, str | None, int]:
    """(directive number, digest of its content, highest sequence) of memory.json. Raises for what holds anything else."""
    seq, digest, highest = value["directive_seq"], value["content_digest"], value["highest_sequence"]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in (seq, highest)):
        raise ValueError("numbers are expected")
    if digest is not None and not isinstance(digest, str):
        raise ValueError("a digest is text")
    return seq, digest, highest
