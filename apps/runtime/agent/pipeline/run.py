"""A running bundle.

Records come out of each lane in the order they came in. Every ingress lane has its file or port, every egress lane its place; a
ring has one of each. What can't be done now is tried again, a few times quickly, then slowly: meanwhile
the pipeline is unhealthy, says why, and goes no further. No record is skipped or lost. A record is processed at least once,
and short of a failure or a crash exactly once: a file's position is kept only after what came of its records is safely out.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from apps.runtime.agent.effects import HostEffects
from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline.files import FileSource
from apps.runtime.agent.pipeline.listen import listen
from apps.runtime.agent.pipeline.sinks import FileSink, HttpSink, Sink, SinkFailed, Sinks
from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.config import adapters_of
from apps.runtime.faults import fault_point
from apps.runtime.interpreter import Interpreter, Outcome, SettingsError
from apps.runtime.ops.effects import EffectFailed
from apps.runtime.spec.plan import Plan

IDLE_SECONDS = 0.05
BATCH_SECONDS = 0.25
QUICK_TRIES = 5
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
TURN_SECONDS = 5.0
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
        self._threads: list[threading.Thread] = []
        self._servers: list[ThreadingHTTPServer] = []
        self._finished: set[threading.Thread] = set()
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
        ingress = adapters_of(bundle.config, plan, "ingress")
        self._ports = {lane: adapter for lane, adapter in ingress.items() if adapter["type"] == "http"}
        self._sources = _sources(ingress, limits, state)
        egress = adapters_of(bundle.config, plan, "egress")
        self._sinks = Sinks(_sinks(egress, limits))
        _check_no_loop(ingress, egress, limits)
        self._effects = HostEffects(limits, state.root, variables)
        try:
            self._interpreter = Interpreter(plan, bundle.config.get("stages", {}), self._effects)
        except SettingsError as error:
            self._effects.close()
            raise ActivationError("bad_settings", str(error)) from error

    # --- life ---

    def start(self) -> None:
        """Open the adapters and begin. Raises ActivationError `adapter_failed` or `disk_full`."""
        try:
            self._sinks.open()
            works: list[tuple[str, Callable[[], None]]] = []
            for lane, adapter in self._ports.items():
                server = listen(adapter, partial(self._take, lane))
                self._servers.append(server)
                works.append((f"pipeline-{lane}", server.serve_forever))
            if self._sources:
                works.append(("pipeline", self._follow))
        except OSError as error:
            code = "disk_full" if error.errno in FULL else "adapter_failed"
            raise ActivationError(code, f"{type(error).__name__}: {error}") from error
        for name, work in works:
            thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._finished.add(threading.current_thread())
        except Stopped:
            self._finished.add(threading.current_thread())
        except Exception as error:  # it is the pipeline's end, told in the next heartbeat
            self.error = f"{type(error).__name__}: {error}"
            self._say(f"the pipeline ended: {self.error}")

    def alive(self) -> bool:
        """True while it runs, has read all that it was to read, or idles, having nothing to read from."""
        ended = (thread for thread in self._threads if not thread.is_alive())
        return self.error is None and all(thread in self._finished for thread in ended)

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
        for server in self._servers:
            if self._threads:
                server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(timeout=2)
        self._sinks.interrupt()
        for thread in self._threads:
            thread.join(timeout=20)
        with self._turn:
            self._sinks.close()
            for source in self._sources.values():
                source.close()
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
        for emission in outcome.emissions:
            self._sinks.put(emission.lane, emission.record)
        self.refusals.extend(f"{refusal.stage}: {refusal.code}" for refusal in outcome.refusals)

    # --- files ---

    def _follow(self) -> None:
        """Take from each file in turn; over when all have ended, which those that are followed never do."""
        reading = dict(self._sources)
        while reading and not self._stop.is_set():
            idle = True
            for lane, source in self._sources.items():
                if lane not in reading:
                    continue
                batch = self._insist(partial(source.take, self._sinks.batch))
                if batch:
                    idle = False
                    with self._turn:
                        self._run(lane, source, batch)
                elif source.finished():
                    del reading[lane]
            if idle and reading:
                self._stop.wait(IDLE_SECONDS)

    def _run(self, lane: str, source: FileSource, batch: list[tuple[bytes, int]]) -> None:
        """Process from the start of `batch` as far as a moment allows, hand over what came of it, then keep the position."""
        until, done = time.monotonic() + BATCH_SECONDS, None
        stopped: Stopped | None = None
        for record, position in batch:
            if record:
                try:
                    self._keep(self._insist(partial(self._interpreter.process, record, lane)))
                except Stopped as stop:
                    stopped = stop
                    break
            done = position
            fault_point("agent.record.processed")
            if self._stop.is_set() or time.monotonic() > until:
                break
        self._insist(self._sinks.flush)
        fault_point("agent.records.out")
        if done is not None:
            self._insist(partial(source.commit, done))
        if stopped is not None:
            raise stopped

    # --- HTTP ---

    def _take(self, lane: str, record: bytes) -> tuple[int, bytes]:
        """One record, now. Its sender has it until the answer is 202 or 422."""
        # another lane may hold the turn while it waits for its egress
        if not self._turn.acquire(timeout=TURN_SECONDS):
            return 503, b'{"code": "unavailable"}'
        try:
            if self._stop.is_set():
                return 503, b'{"code": "stopping"}'
            try:
                outcome = self._insist(partial(self._interpreter.process, record, lane), tries=3)
                self._keep(outcome)
                self._insist(self._sinks.flush, tries=3)
            except Stopped:
                self._sinks.discard()
                return 503, b'{"code": "unavailable"}'
            self.trouble = None
        finally:
            self._turn.release()
        if outcome.refused is not None and not outcome.emissions:
            return 422, b'{"code": "%s"}' % outcome.refused.code.encode()
        return 202, b"{}"


def _sources(adapters: Mapping[str, Mapping[str, Any]], limits: Limits, state: State) -> dict[str, FileSource]:
    files = {lane: adapter for lane, adapter in adapters.items() if adapter["type"] == "file"}
    paths = _paths(files, limits)
    return {
        lane: FileSource(paths[lane], state, follow=bool(adapter.get("follow", True)))
        for lane, adapter in files.items()
    }


def _sinks(adapters: Mapping[str, Mapping[str, Any]], limits: Limits) -> dict[str, Sink]:
    paths = _paths({lane: adapter for lane, adapter in adapters.items() if adapter["type"] == "file"}, limits)
    return {
        lane: FileSink(paths[lane]) if lane in paths else HttpSink(limits.egress_url(adapter["url"]))
        for lane, adapter in adapters.items()
    }


def _check_no_loop(
    ingress: Mapping[str, Mapping[str, Any]], egress: Mapping[str, Mapping[str, Any]], limits: Limits
) -> None:
    """A pipeline that reads what it writes would never end and fill the disk."""
    read, written = (
        {limits.path(adapter["path"]) for adapter in side.values() if adapter["type"] == "file"}
        for side in (ingress, egress)
    )
    if read & written:
        raise ActivationError("path_not_allowed", "the pipeline would read the file that it writes")


def _paths(files: Mapping[str, Mapping[str, Any]], limits: Limits) -> dict[str, Path]:
    """Lane → file. Two names for one file are refused too: records of two lanes must not mix."""
    paths = {lane: limits.path(adapter["path"]) for lane, adapter in files.items()}
    if len(set(paths.values())) < len(paths):
        raise ActivationError("path_not_allowed", "two lanes name the same file")
    return paths


def settle(pipeline: Pipeline, seconds: float = 0.3) -> bool:
    """True when the pipeline is still well after a moment: the health check of an activation."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not pipeline.alive():
            return False
        time.sleep(0.02)
    return pipeline.alive()
