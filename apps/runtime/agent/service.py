"""The agent's life: poll, heartbeat, look after what runs. Nothing that is sent, and no trouble of its own, ends it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import SystemRandom
from typing import Any

from apps.runtime.agent import VERSION
from apps.runtime.agent.client import LONGEST_PAUSE, Client, Refused, Unreachable
from apps.runtime.agent.enroll import Identity, as_key, as_seconds, save_identity
from apps.runtime.agent.journal import Journal
from apps.runtime.agent.keyring import MAX_KEY_SETS_BYTES, Keyring
from apps.runtime.agent.limits import Limits
from apps.runtime.agent.obey import Follower
from apps.runtime.agent.outbox import Outbox
from apps.runtime.agent.runner import Runner
from apps.runtime.agent.state import State

POLL_SECONDS = 25
TEND_SECONDS = 0.2
REFUSED_SECONDS = 5.0
MAX_METRICS_BYTES = 60 * 1024
_dice = SystemRandom()


@dataclass
class _Tended:
    """What the last look at the pipeline saw, and when its refused records are counted next (monotonic seconds)."""

    well: bool = True
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    look_at: float = 0.0
    noted: tuple[bool, str, dict[str, dict[str, int]]] | None = None


class Agent:
    """One enrolled agent. `run()` returns after `stop()`; what runs is stopped with it.

    `heartbeat_taken` is called after each heartbeat that the control plane took while what should run here was well. With
    `must_resume` it ends without a request when what was active here can't be verified.
    """

    def __init__(
        self,
        state: State,
        me: Identity,
        client: Client,
        limits: Limits,
        heartbeat_taken: Callable[[], None] = lambda: None,
        must_resume: bool = False,
    ) -> None:
        self.state, self.me, self.client = state, me, client
        self._heartbeat_taken, self._must_resume = heartbeat_taken, must_resume
        self.start_id = uuid.uuid4().hex
        self.stopping = threading.Event()
        self._turn = threading.RLock()
        self._beat_now = threading.Event()
        self.journal = Journal()
        self.log = self.journal.log
        state.log = self.log
        self.runner = Runner(state, limits, self.log)
        self.outbox = Outbox(state, self._send_report, self.log)
        self.keyring = Keyring(state, self._fetch_keys, self.log)
        self.follower = Follower(
            state=state,
            me=me,
            client=client,
            keyring=self.keyring,
            runner=self.runner,
            outbox=self.outbox,
            call=self.call,
            log=self.log,
            tail=self.journal.tail,
        )
        self.unauthorized = False
        self._own_troubles: dict[str, str] = {}
        self._last_refusal = ""
        self._last_problem: dict[str, Any] | None = None

    # --- life ---

    def run(self) -> None:
        """Start what was active, then follow the control plane until `stop`."""
        self.log(f"agent {self.me.agent_id} {VERSION} starts")
        if not self.runner.resume(self.follower.verified_again):
            if self._must_resume:
                self.log("what was active can't be run by this version")
                return
            self.follower.forget_last()
        for name, work in (("heartbeat", self._heartbeats), ("tend", self._tend)):
            threading.Thread(target=work, name=name, daemon=True).start()
        pause = 0.5
        while not self.stopping.is_set():
            try:
                wait = self._guarded("poll", self._poll)
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
        self.log("agent stops")

    def stop(self) -> None:
        """End at the next moment; safe in a signal handler."""
        self.stopping.set()
        self._beat_now.set()

    def _guarded(self, loop: str, work: Callable[[], float]) -> float:
        """One turn of `loop`. A full disk or an unforeseen error is logged and reported in heartbeats; it does not end the loop."""
        try:
            wait = work()
        except (Unreachable, Refused):
            raise
        except Exception as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            trouble = f"the agent's own trouble: {type(error).__name__}: {words}"
            if trouble != self._own_troubles.get(loop):
                self.log(trouble)
            self._own_troubles[loop] = trouble
            return 2.0
        self._own_troubles.pop(loop, None)
        return wait

    def _refused(self, error: Refused) -> None:
        if error.status == 401 and not self.unauthorized:
            self.unauthorized = True
            self.log(f"the control plane refuses our key ({error.code}); what runs keeps running")
        elif error.status != 401 and str(error) != self._last_refusal:
            self.log(f"the control plane refuses: {error}")
        self._last_refusal = str(error)

    def _tend(self) -> None:
        last = _Tended()
        while not self.stopping.wait(TEND_SECONDS):
            self._guarded("tend", partial(self._tend_once, last))

    def _tend_once(self, last: _Tended) -> float:
        """Start again what ended, and note how it goes where that changed since `last`."""
        ended = self.runner.tend()
        well, why = self.runner.health()
        if ended or (last.well and not well):
            self._beat_now.set()
        last.well = well
        if time.monotonic() >= last.look_at:
            last.look_at, last.refused = time.monotonic() + REFUSED_SECONDS, self.runner.refused()
        if last.noted != (noted := (well, why, last.refused)):
            last.noted = noted
            self._note_health(well, why, last.refused)
        return 0.0

    def _note_health(self, well: bool, why: str, refused: dict[str, dict[str, int]]) -> None:
        """For `status` and `incident`, which are other processes. A disk that is full keeps the last one that fitted."""
        with contextlib.suppress(OSError):
            at = int(time.time() * 1000)
            if why:
                self._last_problem = {"detail": why, "at_unix_ms": at}
            self.state.write(
                "health.json",
                {
                    "ok": well,
                    "detail": why,
                    "at_unix_ms": at,
                    "last_problem": self._last_problem,
                    "refused": refused,
                    "version": VERSION,
                    "allowed": self.runner.limits.as_dict(),
                    "log": self.journal.tail(),
                },
            )

    # --- talking ---

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request below this agent's own path. See Client.call."""
        return self.client.call(method, f"/agents/{self.me.agent_id}{path}", token=self.me.api_key, **kwargs)

    def _send_report(self, to: str, body: dict[str, Any]) -> None:
        self.call("POST", f"/deployments/{to}/status", body=body)

    def _fetch_keys(self, version: int) -> Any:
        return self.call("GET", f"/signing-keys?after={version}", max_bytes=MAX_KEY_SETS_BYTES).json()

    def _heartbeats(self) -> None:
        while not self.stopping.is_set():
            try:
                self._guarded("heartbeat", self.heartbeat)
            except Unreachable:
                pass
            except Refused as error:
                self._refused(error)
            # one that is called for early still keeps a small distance
            self.stopping.wait(0.3)
            self._beat_now.wait(
                max(0.0, min(self.me.heartbeat_seconds, LONGEST_PAUSE) * _dice.uniform(0.85, 1.15) - 0.3)
            )
            self._beat_now.clear()

    def heartbeat(self) -> float:
        """Report the host's state and follow the answer. Seconds to pause."""
        # one turn: a heartbeat composed before a switch must not arrive after the report of it
        with self._turn:
            well, why = self.runner.health()
            running = self.runner.running()
            details = [text for text in (why, self.client.clock.words(), *self._own_troubles.values()) if text]
            body = {
                "status": "unhealthy" if not well else "running" if running is not None else "idle",
                "version": VERSION,
                "start_id": self.start_id,
                "running": running,
                "key_set_version": self.keyring.keys.version,
                "health": {"ok": well, "detail": "; ".join(details)[:1000]},
                "metrics": self._metrics(),
            }
            # so that no server which does not know it yet answers with an older one
            seen = {"Directive-Seq": str(self.follower.last_seq)}
            answer = self.call("POST", "/heartbeat", body=body, headers=seen).json()
            self.runner.note_reported(why)
        self.unauthorized = False
        if well:
            self._heartbeat_taken()
        wait = self._follow(answer)
        self.outbox.flush()
        return wait

    def _metrics(self) -> dict[str, Any]:
        """Counters for the control plane: what does not fit is left out, what has counted nothing first."""
        whole = self.runner.metrics()
        metrics: dict[str, Any] = {**whole, "reports_waiting": len(self.outbox)}
        reductions: tuple[dict[str, Any], ...] = (
            {"lanes": {name: lane for name, lane in whole["lanes"].items() if lane["dropped"]}},
            {"stages": {name: stage for name, stage in whole["stages"].items() if stage["received"]}},
            {"rules": {}},
            {"lanes": {}},
            {"stages": {}},
        )
        for less in reductions:
            if len(json.dumps(metrics)) <= MAX_METRICS_BYTES:
                break
            metrics.update(less, truncated=True)
        return metrics

    def _poll(self) -> float:
        """One waiting poll; how long to pause before the next."""
        # a report that is not taken holds up nothing but itself
        with contextlib.suppress(Unreachable, Refused):
            self.outbox.flush()
        known = f"key_set_version={self.keyring.announced}&after={self.follower.last_seq}"
        answer = self.call("GET", f"/deployment?wait={POLL_SECONDS}&{known}", timeout=POLL_SECONDS + 15.0)
        self.unauthorized = False
        if answer.status == 204:
            return answer.retry_after() or 0.0
        return self._follow(answer.json())

    def _follow(self, answer: object) -> float:
        if not isinstance(answer, dict):
            return 1.0
        with contextlib.suppress(ValueError):
            # more than a minute would let one answer silence this host for as long
            seconds = min(as_seconds(answer.get("heartbeat_seconds"), 1, 3600), LONGEST_PAUSE)
            if seconds != self.me.heartbeat_seconds:
                self.me = replace(self.me, heartbeat_seconds=seconds)
        trouble: Unreachable | Refused | None = None
        try:
            self.keyring.note(answer.get("key_set_version"))
        except (Unreachable, Refused) as error:
            trouble = error  # what is directed may be by a key that is trusted already
        wait = 1.0
        desired = answer.get("desired")
        if isinstance(desired, dict):
            with self._turn:
                wait = self.follower.obey(desired.get("envelope"), desired.get("directive"))
        if trouble is not None:
            raise trouble
        return wait

    def quiet(self) -> bool:
        """Nothing is under way on this host: no switch, no report that waits, and what runs has been well for a while."""
        return not self.follower.busy and len(self.outbox) == 0 and self.runner.settled()

    # --- keys ---

    def rotate_key(self) -> None:
        """Ask for a new runtime key and use it from now on; the old one ends ten minutes after."""
        answer = self.call("POST", "/rotate-key", body={}).json()
        try:
            self.me = replace(self.me, api_key=as_key(answer["api_key"]))
        except (ValueError, TypeError, KeyError):
            raise Unreachable("the answer holds no key") from None
        save_identity(self.state, self.me)
        self.log("runtime key rotated")
