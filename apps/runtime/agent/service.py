"""The agent's life: poll, heartbeat, look after what runs. Nothing that is sent, and no trouble of its own, ends it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from random import SystemRandom
from typing import Any

from apps.runtime.agent import VERSION
from apps.runtime.agent.client import Client, Refused, Unreachable
from apps.runtime.agent.enroll import Identity, save_identity
from apps.runtime.agent.journal import Journal
from apps.runtime.agent.keyring import MAX_KEY_SETS_BYTES, Keyring
from apps.runtime.agent.limits import Limits
from apps.runtime.agent.obey import Follower
from apps.runtime.agent.outbox import Outbox
from apps.runtime.agent.runner import Runner
from apps.runtime.agent.state import State

POLL_SECONDS = 25
TEND_SECONDS = 0.2
MAX_METRICS_BYTES = 15 * 1024
_dice = SystemRandom()


class Agent:
    """One enrolled agent. `run()` returns after `stop()`; what runs is stopped with it.

    `heartbeat_taken` is called after each heartbeat that the control plane took while what shall run here was well. With
    `must_resume` it ends, having said nothing to anybody, when what was active here can't be verified.
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
        self.stopping = threading.Event()
        self._turn = threading.RLock()
        self._beat_now = threading.Event()
        self.journal = Journal()
        self.say = self.journal.say
        self.runner = Runner(state, limits, self.say)
        self.outbox = Outbox(state, self._send_report, self.say)
        self.keyring = Keyring(state, self._fetch_keys, self.say)
        self.follower = Follower(
            state=state,
            me=me,
            client=client,
            keyring=self.keyring,
            runner=self.runner,
            outbox=self.outbox,
            call=self.call,
            say=self.say,
            tail=self.journal.tail,
        )
        self.unauthorized = False
        self._own_trouble = ""
        self._last_problem: dict[str, Any] | None = None

    # --- life ---

    def run(self) -> None:
        """Start what was active, then follow the control plane until `stop`."""
        self.say(f"agent {self.me.agent_id} {VERSION} starts")
        if not self.runner.resume(self.follower.verified_again):
            if self._must_resume:
                self.say("what was active can't be run by this version")
                return
            self.follower.forget_last()
        for name, work in (("heartbeat", self._heartbeats), ("tend", self._tend)):
            threading.Thread(target=work, name=name, daemon=True).start()
        pause = 0.5
        while not self.stopping.is_set():
            try:
                wait = self._guarded(self._poll)
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
        self._beat_now.set()

    def _guarded(self, work: Callable[[], float]) -> float:
        """`work`; what can't be kept, or was not foreseen, is said in the log and in heartbeats, and does not end the agent."""
        try:
            wait = work()
        except (Unreachable, Refused):
            raise
        except Exception as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            told = f"the agent's own trouble: {type(error).__name__}: {words}"
            if told != self._own_trouble:
                self.say(told)
            self._own_trouble = told
            return 2.0
        self._own_trouble = ""
        return wait

    def _refused(self, error: Refused) -> None:
        if error.status == 401 and not self.unauthorized:
            self.unauthorized = True
            self.say(f"the control plane refuses our key ({error.code}); what runs keeps running")
        elif error.status != 401:
            self.say(f"the control plane refuses: {error}")

    def _tend(self) -> None:
        was_well, noted = True, None
        while not self.stopping.wait(TEND_SECONDS):
            ended = self.runner.tend()
            well, why = self.runner.health()
            if ended or (was_well and not well):
                self._beat_now.set()
            was_well = well
            if noted != (noted := (well, why)):
                self._note_health(well, why)

    def _note_health(self, well: bool, why: str) -> None:
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
                self._guarded(self.heartbeat)
            except Unreachable:
                pass
            except Refused as error:
                self._refused(error)
            # one that is called for early still keeps a small distance
            self.stopping.wait(0.3)
            self._beat_now.wait(max(0.0, self.me.heartbeat_seconds * _dice.uniform(0.85, 1.15) - 0.3))
            self._beat_now.clear()

    def heartbeat(self) -> float:
        """Say how it goes; follow what the answer wants. Seconds to pause."""
        # one turn: a heartbeat composed before a switch must not arrive after the report of it
        with self._turn:
            well, why = self.runner.health()
            running = self.runner.running()
            details = [text for text in (why, self.client.clock.words(), self._own_trouble) if text]
            body = {
                "status": "idle" if running is None else "running" if well else "unhealthy",
                "version": VERSION,
                "running": running,
                "key_set_version": self.keyring.keys.version,
                "health": {"ok": well, "detail": "; ".join(details)[:1000]},
                "metrics": self._metrics(),
            }
            # so that no server which has not heard of it yet answers with an older one
            seen = {"Directive-Seq": str(self.follower.last_seq)}
            answer = self.call("POST", "/heartbeat", body=body, headers=seen).json()
            self.runner.told(why)
        self.unauthorized = False
        if well:
            self._heartbeat_taken()
        wait = self._follow(answer)
        self.outbox.flush()
        return wait

    def _metrics(self) -> dict[str, Any]:
        metrics = {**self.runner.stats(), "reports_waiting": len(self.outbox)}
        return metrics if len(json.dumps(metrics)) <= MAX_METRICS_BYTES else {}

    def _poll(self) -> float:
        """One waiting poll; how long to pause before the next."""
        self.outbox.flush()
        known = f"key_set_version={self.keyring.announced}&after={self.follower.last_seq}"
        answer = self.call("GET", f"/deployment?wait={POLL_SECONDS}&{known}", timeout=POLL_SECONDS + 15.0)
        self.unauthorized = False
        if answer.status == 204:
            pause = answer.headers.get("retry-after", "")
            return min(float(pause), 60.0) if pause.isdigit() else 0.0
        return self._follow(answer.json())

    def _follow(self, answer: object) -> float:
        if not isinstance(answer, dict):
            return 1.0
        seconds = answer.get("heartbeat_seconds")
        if isinstance(seconds, int | float) and 1 <= seconds <= 3600 and seconds != self.me.heartbeat_seconds:
            self.me = replace(self.me, heartbeat_seconds=float(seconds))
        self.keyring.note(answer.get("key_set_version"))
        desired = answer.get("desired")
        if isinstance(desired, dict):
            with self._turn:
                return self.follower.obey(desired.get("envelope"), desired.get("directive"))
        return 1.0

    def quiet(self) -> bool:
        """Nothing is under way on this host: no switch, no report that waits, and what runs has been well for a while."""
        return not self.follower.busy and len(self.outbox) == 0 and self.runner.settled()

    # --- keys ---

    def rotate_key(self) -> None:
        """Ask for a new runtime key and use it from now on; the old one ends ten minutes after."""
        answer = self.call("POST", "/rotate-key", body={}).json()
        self.me = replace(self.me, api_key=answer["api_key"])
        save_identity(self.state, self.me)
        self.say("runtime key rotated")
