"""A running bundle.

Records come out of each lane in the order they came in. Every ingress lane has its file or port, every egress lane its place; a
ring has one of each. What can't be done now is tried again, a few times quickly, then slowly: meanwhile the pipeline is
unhealthy, reports why, and goes no further. A record is processed at least once, and short of a failure or a crash exactly once:
a file's position is kept only after what came of its records is safely out. What is refused is counted, and kept on this host.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any

from apps.runtime.agent.effects import HostEffects
from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline.checks import check_files
from apps.runtime.agent.pipeline.files import BATCH_BYTES, FileSource, Line, Piece
from apps.runtime.agent.pipeline.folder import DataFolder, FileRefused
from apps.runtime.agent.pipeline.known import Identity
from apps.runtime.agent.pipeline.listen import listen
from apps.runtime.agent.pipeline.refusals import RecordRefused, RefusedRecords
from apps.runtime.agent.pipeline.retries import FULL, Retries, Stopped, Troubles
from apps.runtime.agent.pipeline.sinks import FileSink, HttpSink, Sink, Sinks
from apps.runtime.agent.pipeline.tuning import tuning_of
from apps.runtime.agent.state import State, StateError
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.config import adapters_of
from apps.runtime.faults import fault_point
from apps.runtime.interpreter import Interpreter, Metrics, Outcome, SettingsError
from apps.runtime.outcome import Tally, added
from apps.runtime.spec.plan import Plan, lane_end

IDLE_SECONDS = 0.05
LOOK_SECONDS = 0.5
BATCH_SECONDS = 0.25
TURN_SECONDS = 5.0
ANSWER_SECONDS = 10.0


class Pipeline:
    """One bundle on this host. Making it checks everything against the host's limits and changes nothing.

    Raises ActivationError: `bad_settings`, `path_not_allowed`, `url_not_allowed`, `post_not_allowed`,
    `exec_not_allowed`, `exec_missing`, `variable_not_allowed`, `secret_not_allowed`, `secret_missing`.
    """

    def __init__(self, bundle: VerifiedBundle, limits: Limits, state: State, log: Callable[[str], None]) -> None:
        self.bundle = bundle
        self._log = log
        self._stop = threading.Event()
        self._looked_enough = threading.Event()
        self._turn = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._serving: list[ThreadingHTTPServer] = []
        self._finished: set[threading.Thread] = set()
        self.error: str | None = None
        self._troubles = Troubles(log)
        self._retries = Retries(self._stop, self._troubles)
        self._refused = RefusedRecords(state.root)
        self._at_lanes: dict[str, Tally] = {}
        self._counting = threading.Lock()
        self._late_codes: tuple[str, ...] = ()  # why receivers refused, since the turn began
        self._plan = plan = Plan.from_dict(bundle.plan)
        limits.check_plan(plan)
        runs_programs = any(stage.op == "exec" for stage in plan.stages)
        variables = limits.variables_for(bundle.config.get("environment", {})) if runs_programs else {}
        ingress = adapters_of(bundle.config, plan, "ingress")
        self._ports = {lane: adapter for lane, adapter in ingress.items() if adapter["type"] == "http"}
        egress = adapters_of(bundle.config, plan, "egress")
        self._folder = DataFolder(limits.data_dir) if limits.data_dir is not None else None
        self._sources: dict[str, FileSource] = {}
        self._file_sinks: list[FileSink] = []
        self._reading: set[str] = set()
        check_files(ingress, egress, limits, self._folder)
        self._make_sources(ingress, state)
        self._sinks = Sinks(self._made_sinks(egress, limits, state))
        self._batch = min(self._sinks.batch, (bundle.config.get("tuning") or {}).get("batch_size", self._sinks.batch))
        self._effects = HostEffects(limits, state.root, variables)
        try:
            self._interpreter = Interpreter(plan, bundle.config.get("stages", {}), self._effects)
        except SettingsError as error:
            self._effects.close()
            raise ActivationError("bad_settings", str(error)) from error

    def _make_sources(self, adapters: Mapping[str, Mapping[str, Any]], state: State) -> None:
        for lane, adapter in adapters.items():
            if adapter["type"] == "file" and self._folder is not None:
                follow = bool(adapter.get("follow", True))
                self._sources[lane] = FileSource(
                    self._folder, adapter["path"], state, follow=follow, log=self._log, written=self._written
                )
                self._reading.add(lane)

    def _made_sinks(self, adapters: Mapping[str, Mapping[str, Any]], limits: Limits, state: State) -> dict[str, Sink]:
        sinks: dict[str, Sink] = {}
        for lane, adapter in adapters.items():
            if adapter["type"] == "file" and self._folder is not None:
                sinks[lane] = sink = FileSink(self._folder, adapter["path"], state, read=self._read)
                self._file_sinks.append(sink)
            else:
                sinks[lane] = HttpSink(limits.egress_url(adapter["url"]), partial(self._refused_by_receiver, lane))
        return sinks

    def _written(self) -> set[Identity]:
        return {identity for sink in self._file_sinks if (identity := sink.identity()) is not None}

    def _read(self) -> set[Identity]:
        return {identity for source in self._sources.values() for identity in source.identities()}

    # --- life ---

    def start(self) -> None:
        """Open the adapters and begin.

        Raises ActivationError `adapter_failed`, `disk_full` or `state_not_written`, or for a file that changed since
        `not_a_regular_file` or `path_not_allowed`.
        """
        try:
            self._sinks.open()
            for lane, adapter in self._ports.items():
                take, refuse = partial(self._take, lane), partial(self._refuse_at_port, lane)
                self._servers[lane] = listen(adapter, take, refuse)
            for lane, server in self._servers.items():
                self._begin(f"pipeline-{lane}", server.serve_forever)
                self._serving.append(server)
            if self._sources:
                self._begin("pipeline", self._follow)
                self._begin("look", self._look_around)
        except FileRefused as error:
            raise ActivationError(error.code, error.message) from error
        except StateError as error:  # a damaged file that can't be set aside
            raise ActivationError("state_not_written", str(error)) from error
        except OSError as error:
            code = "disk_full" if error.errno in FULL else "adapter_failed"
            raise ActivationError(code, f"{type(error).__name__}: {error}") from error

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads or memory for this user
            raise ActivationError("adapter_failed", f"RuntimeError: {error}") from error
        self._threads.append(thread)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._finished.add(threading.current_thread())
        except Stopped:
            self._finished.add(threading.current_thread())
        except Exception as error:  # it is the pipeline's end, reported in the next heartbeat
            self.error = f"{type(error).__name__}: {error}"
            self._log(f"the pipeline ended: {self.error}")

    def alive(self) -> bool:
        """True while it runs, has read all that it was to read, or idles, having nothing to read from."""
        ended = (thread for thread in self._threads if not thread.is_alive())
        return self.error is None and all(thread in self._finished for thread in ended)

    def healthy(self) -> bool:
        """True while it is alive and nothing keeps it from going on."""
        return self.alive() and not self._troubles.words()

    def problem(self) -> str:
        """Why it is not healthy; empty when it is."""
        return self.error or self._troubles.words() or ("" if self.alive() else "the pipeline ended")

    def tuning(self) -> dict[str, Any]:
        """`{requested, applied, degraded}`: what the bundle wishes, what of it this agent does, and why not the rest."""
        return tuning_of(self.bundle.config.get("tuning") or {}, self._plan, self._sinks.batch)

    def metrics(self) -> Metrics:
        """Counters by stage, lane and rule. What an adapter refused stands under `lane:NAME` among the stages."""
        at_lanes = {lane_end(lane): tally.as_dict() for lane, tally in self._at_lanes.copy().items()}
        return added(self._interpreter.metrics(), {"stages": at_lanes, "lanes": {}, "rules": {}})

    def refuse_at_lane(self, lane: str, code: str, record: bytes) -> None:
        """Count a record that the adapter of `lane` refused: what came in and is no record, what the egress does not take."""
        self._refuse(lane, code, record, len(record))

    def _refuse_at_port(self, lane: str, code: str, record: bytes) -> None:
        self.refuse_at_lane(lane, code, record)
        self._refused.flush()  # maybe nothing follows

    def _refused_by_receiver(self, lane: str, record: bytes) -> None:
        self.refuse_at_lane(lane, "egress_refused", record)
        self._late_codes += ("egress_refused",)

    def _refuse(self, lane: str, code: str, record: bytes, size: int) -> None:
        with self._counting:
            self._at_lanes.setdefault(lane, Tally()).refuse(code)
        self._refused.keep(lane_end(lane), code, record, size)

    def stop(self) -> None:
        """Finish the record in hand, write everything out, end. Programs and requests under way are ended: their record
        is not done, and comes again."""
        self._stop.set()
        self._looked_enough.set()
        self._effects.stop()
        for server in self._servers.values():
            if server in self._serving:  # one that never served would never be done
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

    def _keep(self, record: bytes, outcome: Outcome) -> tuple[str, ...]:
        """Hold what came out for the sinks and what was refused for its file. The codes of what the egress can't take."""
        codes: tuple[str, ...] = ()
        for emission in outcome.emissions:
            try:
                self._sinks.put(emission.lane, emission.record)
            except RecordRefused as refused:
                self.refuse_at_lane(emission.lane, refused.code, emission.record)
                codes += (refused.code,)
        for refusal in outcome.refusals:
            self._refused.keep(refusal.stage, refusal.code, record)
        return codes

    # --- files ---

    def _look_around(self) -> None:
        """Have each file in hand that is rotated while nothing can be read, because the egress hangs for example."""
        while not self._looked_enough.wait(LOOK_SECONDS):
            for lane, source in self._sources.items():
                if lane in self._reading:
                    with contextlib.suppress(FileRefused, OSError):  # the next read reports it
                        source.look()

    def _follow(self) -> None:
        """Take from each file in turn; over when all have ended, which those that are followed never do."""
        while self._reading and not self._stop.is_set():
            idle = True
            for lane, source in self._sources.items():
                if lane not in self._reading:
                    continue
                batch = self._retries.until_done(lane, partial(source.take, self._batch))
                if batch:
                    idle = False
                    with self._turn:
                        self._run(lane, source, batch)
                elif source.finished():
                    self._reading.discard(lane)
            if idle and self._reading:
                self._stop.wait(IDLE_SECONDS)
        self._looked_enough.set()

    def _run(self, lane: str, source: FileSource, batch: list[Line]) -> None:
        """As `_process`. What is still held when that ends early is let go: its records come again."""
        try:
            self._process(lane, source, batch)
        except BaseException:
            self._sinks.discard()
            raise

    def _process(self, lane: str, source: FileSource, batch: list[Line]) -> None:
        """Process from the start of `batch` as far as a moment allows, hand over what came of it, then keep the position."""
        until, done = time.monotonic() + BATCH_SECONDS, 0
        stopped: Stopped | None = None
        for line in batch:
            if isinstance(line, Piece):
                self._refuse(lane, line.code, line.record, line.length)
            elif line:
                try:
                    self._keep(line, self._retries.until_done(lane, partial(self._interpreter.process, line, lane)))
                except Stopped as stop:
                    stopped = stop
                    break
            done += 1
            fault_point("agent.record.processed")
            if self._stop.is_set() or time.monotonic() > until or self._sinks.held_bytes > BATCH_BYTES:
                break
        self._retries.until_done(lane, self._sinks.flush)
        fault_point("agent.records.out")
        self._refused.flush()
        if done:
            self._retries.until_done(lane, partial(source.commit, done), once_more=True)
        if stopped is not None:
            raise stopped

    # --- HTTP ---

    def _take(self, lane: str, record: bytes) -> tuple[int, bytes]:
        """One record, now: its sender has it until the answer is 202 or 422, which comes within ANSWER_SECONDS, or 503."""
        until = time.monotonic() + ANSWER_SECONDS
        # another lane may hold the turn while it waits for its egress
        if not self._turn.acquire(timeout=TURN_SECONDS):
            return 503, b'{"code": "unavailable"}'
        try:
            if self._stop.is_set():
                return 503, b'{"code": "stopping"}'
            self._late_codes = ()
            self._effects.until = until
            try:
                outcome = self._retries.few_times(lane, partial(self._interpreter.process, record, lane), until)
                codes = self._keep(record, outcome)
                self._retries.few_times(lane, partial(self._sinks.flush, until), until)
                codes += self._late_codes
            except Stopped:
                self._sinks.discard()
                return 503, b'{"code": "unavailable"}'
            except Exception as error:  # unforeseen; its text may hold something of the record
                self._sinks.discard()
                self._troubles.note(lane, type(error).__name__)
                return 503, b'{"code": "unavailable"}'
            self._refused.flush()
            self._troubles.clear(lane)
        finally:
            self._effects.until = None
            self._turn.release()
        codes += tuple(refusal.code for refusal in outcome.refusals)
        if codes and len(codes) >= len(outcome.emissions) + len(outcome.refusals):
            return 422, b'{"code": "%s"}' % codes[0].encode()
        return 202, b"{}"


def settle(pipeline: Pipeline, seconds: float = 0.3) -> bool:
    """True when the pipeline is still well after a moment: the health check of an activation."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not pipeline.alive():
            return False
        time.sleep(0.02)
    return pipeline.alive()
