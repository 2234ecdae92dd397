"""A running bundle.

Records come out in the order they came in. What can't be done now is tried again, a few times quickly, then slowly: meanwhile
the pipeline is unhealthy, says why, and goes no further. No record is skipped or lost. A record is processed at least once,
and short of a failure or a crash exactly once: a file's position is kept only after what came of its records is safely out.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from typing import Any, TypeVar

from apps.runtime.agent.effects import HostEffects
from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline.files import FileSource
from apps.runtime.agent.pipeline.listen import listen
from apps.runtime.agent.pipeline.sinks import FileSink, HttpSink, NoSink, Sink, SinkFailed
from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.interpreter import Interpreter, Outcome, SettingsError
from apps.runtime.ops.effects import EffectFailed
from apps.runtime.spec.plan import Plan

IDLE_SECONDS = 0.05
BATCH_SECONDS = 0.25
QUICK_TRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")


class Stopped(Exception):
    """The pipeline was told to stop while something did not work."""


def words_for(error: Exception) -> str:
    """What is wrong, with the code `disk_full` where that is what it is. Holds nothing of any record."""
    if isinstance(error, OSError) and error.errno in FULL:
        return f"disk_full: {error.strerror}"
    return str(error) if isinstance(error, EffectFailed | SinkFailed) else f"{type(error).__name__}: {error}"


class Pipeline:
    """One bundle on this host. Making it checks everything against the host's limits and changes nothing.

    Raises ActivationError: `bad_settings`, `bad_plan`, `path_not_allowed`, `url_not_allowed`, `post_not_allowed`,
    `exec_not_allowed`, `exec_missing`, `variable_not_allowed`, `secret_not_allowed`, `secret_missing`.
    """

    def __init__(self, bundle: VerifiedBundle, limits: Limits, state: State, say: Callable[[str], None]) -> None:
        self.bundle = bundle
        self._say = say
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._server: ThreadingHTTPServer | None = None
        self._finished = False
        self.error: str | None = None
        self.trouble: str | None = None
        self.refusals: deque[str] = deque(maxlen=20)
        try:
            plan = Plan.from_dict(bundle.plan)
        except ValueError as error:
            raise ActivationError("bad_plan", str(error)) from error
        limits.check_plan(plan)
        runs_programs = any(stage.op == "exec" for stage in plan.stages)
        variables = limits.variables_for(bundle.config.get("environment", {})) if runs_programs else {}
        adapters = bundle.config.get("adapters", {})
        self._ingress: Mapping[str, Any] = adapters.get("ingress") or {}
        self._source = self._file_source(limits, state)
        self._sink = self._sink_for(adapters.get("egress") or {}, limits)
        self._effects = HostEffects(limits, state.root, variables)
        try:
            self._interpreter = Interpreter(plan, bundle.config.get("stages", {}), self._effects)
        except SettingsError as error:
            self._effects.close()
            raise ActivationError("bad_settings", str(error)) from error

    def _file_source(self, limits: Limits, state: State) -> FileSource | None:
        if self._ingress.get("type") != "file":
            return None
        follow = bool(self._ingress.get("follow", True))
        return FileSource(limits.path(self._ingress["path"]), state, follow=follow)

    def _sink_for(self, egress: Mapping[str, Any], limits: Limits) -> Sink:
        if egress.get("type") == "file":
            return FileSink(limits.path(egress["path"]))
        if egress.get("type") == "http":
            return HttpSink(limits.egress_url(egress["url"]))
        return NoSink()

    # --- life ---

    def start(self) -> None:
        """Open the adapters and begin. Raises ActivationError `adapter_failed` or `disk_full`."""
        try:
            self._sink.open()
            if self._ingress.get("type") == "http":
                self._server = listen(self._ingress, self._take)
                work: Callable[[], None] = self._server.serve_forever
            elif self._source is not None:
                work = self._follow
            else:
                return
        except OSError as error:
            code = "disk_full" if error.errno in FULL else "adapter_failed"
            raise ActivationError(code, f"{type(error).__name__}: {error}") from error
        self._thread = threading.Thread(target=self._guarded, args=(work,), name="pipeline", daemon=True)
        self._thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._finished = True
        except Stopped:
            self._finished = True
        except Exception as error:  # it is the pipeline's end, told in the next heartbeat
            self.error = f"{type(error).__name__}: {error}"
            self._say(f"the pipeline ended: {self.error}")

    def alive(self) -> bool:
        """True while it runs, has read all that it was to read, or idles, having nothing to read from."""
        return self.error is None and (self._thread is None or self._finished or self._thread.is_alive())

    def healthy(self) -> bool:
        """True while it is alive and nothing keeps it from going on."""
        return self.alive() and self.trouble is None

    def problem(self) -> str:
        """Why it is not healthy; empty when it is."""
        return self.error or self.trouble or ("" if self.alive() else "the pipeline ended")

    def stats(self) -> dict[str, dict[str, int]]:
        """Counters by stage."""
        return dict(self._interpreter.stats())

    def stop(self) -> None:
        """Finish the record in hand, write everything out, end. Programs and requests under way are ended: their record
        is not done, and comes again."""
        self._stop.set()
        self._effects.stop()
        if self._server is not None:
            if self._thread is not None:
                self._server.shutdown()
            self._server.server_close()
        if self._thread is not None:
            self._thread.join(timeout=2)
            self._sink.interrupt()
            self._thread.join(timeout=20)
        with self._turn:
            self._sink.close()
            if self._source is not None:
                self._source.close()
            self._effects.close()

    # --- trying again ---

    def _insist(self, what: Callable[[], T], tries: int | None = None) -> T:
        """Do `what`, again and again until it works; Stopped when the pipeline is stopped, or after `tries`, before it did."""
        pause, failed = FIRST_PAUSE, 0
        while True:
            try:
                done = what()
            except (EffectFailed, SinkFailed, OSError) as error:
                failed += 1
                ends = self._stop.is_set() or (tries is not None and (failed >= tries or self.trouble is not None))
                if failed >= QUICK_TRIES or (ends and not self._stop.is_set()):
                    self._troubled(words_for(error))
                if ends or self._stop.wait(pause):
                    raise Stopped from error
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if failed and self.trouble is not None:
                    self._say("the pipeline goes on")
                    self.trouble = None
                return done

    def _troubled(self, words: str) -> None:
        if self.trouble != words:
            self._say(f"the pipeline waits: {words}")
        self.trouble = words

    def _keep(self, outcome: Outcome) -> None:
        if outcome.emitted is not None:
            self._sink.put(outcome.emitted)
        elif outcome.refused is not None:
            self.refusals.append(f"{outcome.refused.stage}: {outcome.refused.code}")

    # --- file ---

    def _follow(self) -> None:
        assert self._source is not None
        while not self._stop.is_set():
            batch = self._insist(lambda: self._source.take(self._sink.batch) if self._source else [])
            if batch:
                self._run(batch)
            elif self._source.finished():
                return
            else:
                self._stop.wait(IDLE_SECONDS)

    def _run(self, batch: list[tuple[bytes, int]]) -> None:
        """Process from the start of `batch` as far as a moment allows, hand over what came of it, then keep the position."""
        until, done = time.monotonic() + BATCH_SECONDS, None
        stopped: Stopped | None = None
        for record, position in batch:
            if record:
                try:
                    self._keep(self._insist(lambda record=record: self._interpreter.process(record)))  # type: ignore[misc]
                except Stopped as stop:
                    stopped = stop
                    break
            done = position
            if self._stop.is_set() or time.monotonic() > until:
                break
        self._insist(self._sink.flush)
        if done is not None:
            self._insist(lambda: self._source.commit(done) if self._source else None)
        if stopped is not None:
            raise stopped

    # --- HTTP ---

    def _take(self, record: bytes) -> tuple[int, bytes]:
        """One record, now. Its sender has it until the answer is 202 or 422."""
        with self._turn:
            if self._stop.is_set():
                return 503, b'{"code": "stopping"}'
            try:
                outcome = self._insist(lambda: self._interpreter.process(record), tries=3)
                self._keep(outcome)
                self._insist(self._sink.flush, tries=3)
            except Stopped:
                self._sink.discard()
                return 503, b'{"code": "unavailable"}'
            self.trouble = None
        if outcome.refused is not None:
            return 422, b'{"code": "%s"}' % outcome.refused.code.encode()
        return 202, b"{}"


def settle(pipeline: Pipeline, seconds: float = 0.3) -> bool:
    """True when the pipeline is still well after a moment: the health check of an activation."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not pipeline.alive():
            return False
        time.sleep(0.02)
    return pipeline.alive()
