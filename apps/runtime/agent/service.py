"""The agent's life: poll, verify, switch, report; heartbeat beside it. It never runs what it could not verify."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from random import SystemRandom
from typing import Any

from apps.runtime import trust
from apps.runtime.agent import VERSION
from apps.runtime.agent.client import Client, Refused, Unreachable
from apps.runtime.agent.enroll import Identity, save_identity
from apps.runtime.agent.journal import Journal
from apps.runtime.agent.outbox import Outbox
from apps.runtime.agent.pipeline import ActivationError, Limits
from apps.runtime.agent.runner import Runner
from apps.runtime.agent.state import State
from apps.runtime.bundle import MAX_BUNDLE_BYTES, VerifiedBundle, read_bundle, verify_bundle
from apps.runtime.faults import fault_point
from apps.runtime.trust import Directive, KeySet, TrustError

POLL_SECONDS = 25
_dice = SystemRandom()


class Agent:
    """One enrolled agent. `run()` returns after `stop()`; what runs is stopped with it."""

    def __init__(self, state: State, me: Identity, client: Client, limits: Limits) -> None:
        self.state, self.me, self.client = state, me, client
        self.stopping = threading.Event()
        self._turn = threading.RLock()
        self.journal = Journal()
        self.say = self.journal.say
        self.runner = Runner(state, limits, self.say)
        self.outbox = Outbox(state, self._send_report, self.say)
        keys = state.keys()
        if keys is None:
            raise TrustError("no_keys", "the state folder has no key set")
        self.keys: KeySet = keys
        memory = state.read("memory.json") or {}
        self.last_seq = int(memory.get("directive_seq", 0))
        self.last_digest: str | None = memory.get("content_digest")
        self.highest = int(memory.get("highest_sequence", 0))
        self.unauthorized = False
        self._told: str | None = None
        self._server_keys = self.keys.version

    # --- life ---

    def run(self) -> None:
        """Start what was active, then follow the control plane until `stop`."""
        self.say(f"agent {self.me.agent_id} {VERSION} starts")
        if not self.runner.resume(self._verified):
            self.last_digest = None  # nothing runs: the next directive is followed from the start
        beat = threading.Thread(target=self._heartbeats, name="heartbeat", daemon=True)
        beat.start()
        pause = 0.5
        while not self.stopping.is_set():
            try:
                wait = self._poll()
                pause = 0.5
            except Unreachable as error:
                wait = error.retry_after or _dice.uniform(0.1, pause)
                pause = min(pause * 2, 15)
            except Refused as error:
                self._refused(error)
                wait = _dice.uniform(15, 30) if error.status == 401 else _dice.uniform(2, 5)
            self.stopping.wait(wait)
        with self._turn:
            self.runner.shut_down()
        self.say("agent stops")

    def stop(self) -> None:
        """End at the next moment; safe in a signal handler."""
        self.stopping.set()

    def _refused(self, error: Refused) -> None:
        if error.status == 401 and not self.unauthorized:
            self.unauthorized = True
            self.say(f"the control plane refuses our key ({error.code}); what runs keeps running")
        elif error.status != 401:
            self.say(f"the control plane refuses: {error}")

    def _verified(self, data: bytes, sha256: str, directive: Directive | None = None) -> VerifiedBundle:
        return verify_bundle(
            read_bundle(data),
            keys=self.keys,
            expected_sha256=sha256,
            environment_id=self.me.environment_id,
            posture=self.me.posture,
            org_id=self.me.org_id,
            project_id=self.me.project_id,
            deployment_id=directive.deployment_id if directive else None,
            sequence=directive.sequence if directive else None,
        )

    # --- talking ---

    def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        return self.client.call(method, f"/agents/{self.me.agent_id}{path}", token=self.me.api_key, **kwargs)

    def _heartbeats(self) -> None:
        while not self.stopping.is_set():
            try:
                self.heartbeat()
            except Unreachable:
                pass
            except Refused as error:
                self._refused(error)
            self.stopping.wait(self.me.heartbeat_seconds * _dice.uniform(0.85, 1.15))

    def heartbeat(self) -> None:
        """Say how it goes; follow what the answer wants."""
        # one turn: a heartbeat composed before a switch must not arrive after the report of it
        with self._turn:
            well, detail = self.runner.health()
            running = self.runner.running()
            body = {
                "status": "running" if running else "idle",
                "version": VERSION,
                "running": running,
                "key_set_version": self.keys.version,
                "health": {"ok": well, "detail": detail[:1000]},
                "metrics": self.runner.stats(),
            }
            answer = self._call("POST", "/heartbeat", body=body).json()
        self.unauthorized = False
        self._follow(answer)
        self.outbox.flush()

    def _poll(self) -> float:
        """One waiting poll; how long to pause before the next."""
        self.outbox.flush()
        answer = self._call(
            "GET", f"/deployment?wait={POLL_SECONDS}&after={self.last_seq}", timeout=POLL_SECONDS + 15.0
        )
        self.unauthorized = False
        if answer.status == 204:
            pause = answer.headers.get("retry-after", "")
            return float(pause) if pause.isdigit() else 0.0
        return self._follow(answer.json())

    def _follow(self, answer: dict[str, Any]) -> float:
        seconds = answer.get("heartbeat_seconds")
        if isinstance(seconds, int | float) and 1 <= seconds <= 3600 and seconds != self.me.heartbeat_seconds:
            self.me = replace(self.me, heartbeat_seconds=float(seconds))
        version = answer.get("key_set_version")
        if isinstance(version, int) and version > self._server_keys:
            self.follow_keys()
            self._server_keys = version
        desired = answer.get("desired")
        if isinstance(desired, dict):
            with self._turn:
                return self.obey(desired.get("envelope"), desired.get("directive"))
        return 1.0

    def follow_keys(self) -> None:
        """Fetch and accept the key sets above ours, one by one; a bad one is refused and ours stays."""
        answer = self._call("GET", f"/signing-keys?after={self.keys.version}").json()
        try:
            keys = trust.accept_keyset(self.keys, answer["envelopes"])
        except (TrustError, KeyError, TypeError) as error:
            self.say(f"a key set was refused: {error}")
            return
        if keys != self.keys:
            self.state.trust(keys)
            self.keys = keys
            self.say(f"key set version {keys.version} accepted")

    # --- reports ---

    def report(
        self, status: str, directive: Directive | None, *, to: str | None, reason: str = "", **more: Any
    ) -> None:
        """Queue a report on disk, then send what is queued, oldest first."""
        if to is None:
            return
        body = {
            "status": status,
            "bundle_sha256": directive.bundle_sha256 if directive else None,
            "sequence": directive.sequence if directive else None,
            "reason": reason[:4000],
            "log_tail": self.journal.tail() if status in ("failed", "activated", "rolled_back") else "",
            **more,
        }
        with self._turn:
            self.outbox.put(to, body)

    def _send_report(self, to: str, body: dict[str, Any]) -> None:
        self._call("POST", f"/deployments/{to}/status", body=body)

    # --- obeying ---

    def obey(self, envelope: object, plain: object) -> float:
        """Bring this host to what the directive says, if it can be believed. Seconds to pause before asking again."""
        try:
            directive = self._believed(envelope)
        except TrustError as error:
            return self._disbelieve(error, plain)
        known = (directive.directive_seq, directive.content_digest()) == (self.last_seq, self.last_digest)
        if known:
            return 0.0
        fault_point("agent.directive.believed")
        try:
            self._carry_out(directive)
        except Unreachable as error:
            self.say(f"not carried out yet: {error}")
            return 1.0
        fault_point("agent.directive.carried_out")
        self.last_seq, self.last_digest = directive.directive_seq, directive.content_digest()
        self._remember()
        return 0.0

    def _believed(self, envelope: object) -> Directive:
        check = {
            "environment_id": self.me.environment_id,
            "agent_id": self.me.agent_id,
            "now_ms": int(time.time() * 1000),
            "last_seq": self.last_seq,
            "last_content_digest": self.last_digest,
        }
        try:
            return trust.verify_directive(envelope, self.keys, **check)  # type: ignore[arg-type]
        except TrustError as error:
            if error.code != "unknown_key":
                raise
            self.follow_keys()
            return trust.verify_directive(envelope, self.keys, **check)  # type: ignore[arg-type]

    def _disbelieve(self, error: TrustError, plain: object) -> float:
        told = f"{error.code} {plain!r}"
        if told != self._told:
            self._told = told
            self.say(f"directive refused: {error}")
            to = plain.get("for_deployment_id") if isinstance(plain, dict) else None
            if isinstance(to, str) and len(to) == 36:
                self.report("failed", None, to=to, reason=f"{error.code}: {error.message}")
        return 5.0

    def _remember(self) -> None:
        self.state.write(
            "memory.json",
            {
                "directive_seq": self.last_seq,
                "content_digest": self.last_digest,
                "highest_sequence": self.highest,
            },
        )

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
            self.say(f"refused: {error}")
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
        data = self._fetch(directive, sha256)
        fault_point("agent.bundle.fetched")
        self.report("fetched", directive, to=to)
        bundle = self._verified(data, sha256, directive)
        if bundle.capabilities:
            raise ActivationError("capability_not_allowed", f"this agent allows no {', '.join(bundle.capabilities)}")
        self.report("verified", directive, to=to)
        fault_point("agent.bundle.verified")
        self.runner.switch(bundle, data, wanted)
        fault_point("agent.switch.done")
        self.highest = max(self.highest, sequence)
        self._remember()
        self.say(f"{done} bundle {sha256[:12]}, sequence {sequence}")
        profile = bundle.config.get("tuning", {}).get("profile", "default")
        tuning = {"requested": {"profile": profile}, "applied": {"profile": "default"}, "degraded": []}
        if profile != "default":
            tuning["degraded"] = [f"profile {profile} is not available on this host"]
        self.report(done, directive, to=to, tuning=tuning)

    def _fetch(self, directive: Directive, sha256: str) -> bytes:
        kept = self.state.bundle_path(sha256)
        if kept.exists():
            return kept.read_bytes()
        try:
            answer = self._call(
                "GET", f"/deployments/{directive.deployment_id}/bundle", timeout=60, max_bytes=MAX_BUNDLE_BYTES
            )
        except Refused as error:
            if error.status == 401:
                raise Unreachable(str(error)) from error
            raise TrustError("fetch_refused", str(error)) from error
        return bytes(answer.body)

    # --- keys ---

    def rotate_key(self) -> None:
        """Ask for a new runtime key and use it from now on; the old one ends ten minutes after."""
        answer = self._call("POST", "/rotate-key", body={}).json()
        self.me = replace(self.me, api_key=answer["api_key"])
        save_identity(self.state, self.me)
        self.say("runtime key rotated")
