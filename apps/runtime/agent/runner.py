"""What runs on this host: the switch from one bundle to another, and what happens when a pipeline ends by itself."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apps.runtime.agent.enroll import as_uuid
from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline import Pipeline, settle
from apps.runtime.agent.pipeline.retries import FULL
from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.faults import fault_point
from apps.runtime.outcome import Metrics, added, no_metrics
from apps.runtime.trust import TrustError

LASTS_SECONDS = 60.0
SETTLED_SECONDS = 10.0
MOST_QUICK_ENDS = 5
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


@dataclass(slots=True)
class _Ends:
    """How often the pipeline ended by itself, each time within a minute of its start."""

    quick: int = 0
    why: str = ""
    unreported: bool = False
    started_at: float = 0.0
    again_at: float | None = None

    def note(self, why: str) -> None:
        now = time.monotonic()
        self.quick = 1 if now - self.started_at >= LASTS_SECONDS else self.quick + 1
        self.why, self.unreported = why, True
        pause = min(FIRST_PAUSE * 2 ** (self.quick - 1), LONGEST_PAUSE)
        self.again_at = now + pause if self.quick < MOST_QUICK_ENDS else None

    def words(self) -> str:
        if self.again_at is None:
            return f"the pipeline ended {self.quick} times, each within a minute, and stays down: {self.why}"
        return f"the pipeline ended and is started again: {self.why}"


class Runner:
    """At most one pipeline. Safe from several threads.

    `active` is the content of `active.json`: deployment id, digest and sequence of what was activated last. Only `switch` and `stop`
    change it: a pipeline that ends by itself is started again, never another one in its place.
    """

    def __init__(self, state: State, limits: Limits, log: Callable[[str], None]) -> None:
        self.state, self.limits, self.log = state, limits, log
        self.active: dict[str, Any] | None = state.recall("active.json", _activated)
        # what this host should run and does not, and why; empty when it runs what it should, or should run nothing
        self._missing = self._still_missing = ""
        self._missing_sha256: str | None = None
        if self.active is None and (state.root / "active.json.damaged").exists():
            self._missing = "what was active is not known any more: active.json was damaged"
        self.pipeline: Pipeline | None = None
        self._bundle: VerifiedBundle | None = None
        self._ends = _Ends()
        self._counted = no_metrics()
        self._turn = threading.RLock()

    # --- what others ask ---

    def running(self) -> dict[str, Any] | None:
        """What is active here, well or not; None when nothing is."""
        return dict(self.active) if self.active is not None and self._bundle is not None else None

    def runs_well(self, wanted: dict[str, Any]) -> bool:
        """Is `wanted` what runs, and is it well?"""
        return self.active == wanted and self.pipeline is not None and self.pipeline.healthy()

    def health(self) -> tuple[bool, str]:
        """(well, why not). An end that no heartbeat has reported yet counts, even if it runs again."""
        with self._turn:
            if self._bundle is None:
                return not self._missing, "; ".join(text for text in (self._missing, self._still_missing) if text)
            if self.pipeline is None or self._ends.unreported:
                return False, self._ends.words()
            return self.pipeline.healthy(), self.pipeline.problem()

    def is_missing(self, sha256: str) -> bool:
        """True if this bundle should run here, as far as is known, but is not on this host any more."""
        return bool(self._missing) and self._missing_sha256 in (None, sha256)

    def still_missing(self, why: str) -> bool:
        """Report in `health` why what is missing could not be fetched again; True when the reason is new."""
        with self._turn:
            news, self._still_missing = why != self._still_missing, why
            return news

    def note_reported(self, words: str) -> None:
        """A heartbeat that gave `words` as the reason has arrived."""
        with self._turn:
            if words == self._ends.words():
                self._ends.unreported = False

    def settled(self) -> bool:
        """Nothing is active, or it has run well for a while."""
        well, _ = self.health()
        return (self._bundle is None and well) or (
            well and self._bundle is not None and time.monotonic() - self._ends.started_at > SETTLED_SECONDS
        )

    def tuning(self) -> dict[str, Any]:
        """What was wished for, what of it applies here, and what not, in words."""
        pipeline = self.pipeline
        return pipeline.tuning() if pipeline is not None else {}

    def metrics(self) -> Metrics:
        """Counters of what is active, since the agent started or switched to it, the pipeline's own restarts included."""
        with self._turn:
            if self._bundle is None:
                return no_metrics()
            return added(self._counted, self.pipeline.metrics()) if self.pipeline is not None else self._counted

    def refused(self) -> dict[str, dict[str, int]]:
        """Stage → code → how many records were refused, of `metrics`."""
        return {name: stage["codes"] for name, stage in self.metrics()["stages"].items() if stage["codes"]}

    # --- starting and ending ---

    def resume(self, verify: Callable[[bytes, str], VerifiedBundle]) -> bool:
        """Start again what was activated once, without the control plane.

        False when it is not there or can't be verified: then this host is unhealthy until something is activated or a
        directive stops it. One that can't be started is tried again later.
        """
        if self.active is None:
            return not self._missing
        sha256 = self.active["bundle_sha256"]
        try:
            archive = self.state.kept_bundle(sha256)
            if archive is None:
                raise TrustError("bundle_missing", "its archive is not on this host any more, or was damaged")
            self._bundle = verify(archive, sha256)
        except TrustError as error:
            self._missing = f"bundle {sha256[:12]} shall run here and does not: {error}"
            self._missing_sha256 = sha256
            self.log(f"what was active can't be started: {error}")
            self.active = None
            return False
        if self._start_again():
            self.log(f"running bundle {self._bundle.sha256[:12]} again")
        return True

    def tend(self) -> bool:
        """Look after what runs; True when it has just ended by itself. Call it often."""
        with self._turn:
            if self.pipeline is not None and not self.pipeline.alive():
                why = self.pipeline.problem()
                self._counted = added(self._counted, self.pipeline.metrics())
                self.pipeline.stop()
                self.pipeline = None
                self._ends.note(why)
                self.log(self._ends.words())
                return True
            due = self._ends.again_at is not None and time.monotonic() >= self._ends.again_at
            if self.pipeline is None and self._bundle is not None and due:
                return not self._start_again()
            return False

    def _start_again(self) -> bool:
        """Start the active bundle. When that fails, it counts as an end."""
        with self._turn:
            assert self._bundle is not None
            self._ends.started_at = time.monotonic()
            try:
                self.pipeline = self._started(self._bundle)
            except ActivationError as error:
                self._ends.note(str(error))
                self.log(self._ends.words())
                return False
            return True

    def _started(self, bundle: VerifiedBundle) -> Pipeline:
        pipeline = Pipeline(bundle, self.limits, self.state, self.log)
        try:
            pipeline.start()
        except ActivationError:
            pipeline.stop()
            raise
        return pipeline

    def shut_down(self) -> None:
        """End what runs; the next start of the agent runs it again."""
        with self._turn:
            if self.pipeline is not None:
                self.pipeline.stop()
            self.pipeline = self._bundle = None

    def stop(self) -> None:
        """End what runs, for good. OSError when that can't be kept: it has ended all the same."""
        with self._turn:
            self.shut_down()
            self.active = None
            self._missing = self._still_missing = ""
            self.state.remove("active.json")
            self.state.remove("active.json.damaged")
            fault_point("agent.stop.noted")
            self.state.forget_bundles(set())
            self.log("pipeline stopped")

    # --- the switch ---

    def switch(self, bundle: VerifiedBundle, archive: bytes, wanted: dict[str, Any]) -> None:
        """Make `bundle` what runs here. Raises ActivationError when it can't be: what ran before runs then.

        Ended by force at any moment, the next start runs what `active.json` names, and the directive, which was not remembered
        yet, is followed once more.
        """
        with self._turn:
            new = self.prepare(bundle)
            try:
                self.keep_archive(bundle, archive)
                fault_point("agent.switch.bundle_kept")
                former = self.stop_former()
                fault_point("agent.switch.old_stopped")
            except BaseException:
                new.stop()
                raise
            try:
                self.start_new(new)
                fault_point("agent.switch.new_stands")
                self.record_active(wanted)
                fault_point("agent.switch.noted")
            except ActivationError:
                new.stop()
                self.go_back(former, refused=bundle.sha256)
                raise
            was = self.active
            self.pipeline, self._bundle, self.active = new, bundle, wanted
            self._ends = _Ends(started_at=time.monotonic())
            self._missing = self._still_missing = ""
            self.state.remove("active.json.damaged")
            self._counted = no_metrics()
            self.forget_others(was)

    def prepare(self, bundle: VerifiedBundle) -> Pipeline:
        """The new pipeline, checked against everything this host allows. Nothing is changed yet."""
        return Pipeline(bundle, self.limits, self.state, self.log)

    def keep_archive(self, bundle: VerifiedBundle, archive: bytes) -> None:
        """Have the archive on disk before anything is switched. ActivationError `disk_full` or `state_not_written`."""
        try:
            self.state.keep_bundle(bundle.sha256, archive)
        except OSError as error:
            raise _not_written(error) from error

    def stop_former(self) -> VerifiedBundle | None:
        """End what runs; what it was."""
        former = self._bundle
        if self.pipeline is not None:
            self.pipeline.stop()
            self.pipeline = None
        return former

    def start_new(self, new: Pipeline) -> None:
        """Start it, and see that it keeps running for a moment. Raises ActivationError."""
        new.start()
        if not settle(new):
            raise ActivationError("unhealthy", new.problem() or "the pipeline ended at once")

    def record_active(self, wanted: dict[str, Any]) -> None:
        """From here on a restart runs the new one. Raises ActivationError when that can't be kept."""
        try:
            self.state.write("active.json", wanted)
        except OSError as error:
            raise _not_written(error) from error

    def go_back(self, former: VerifiedBundle | None, *, refused: str) -> None:
        """Run again what ran before; it is tried again later when that does not work at once."""
        if former is None or former.sha256 != refused:
            self.state.forget_bundle(refused)
        if former is not None and self._start_again():
            self.log("went back to what ran before")

    def forget_others(self, was: dict[str, Any] | None) -> None:
        """Keep the archives of what runs and of what ran before it, and no others."""
        assert self.active is not None
        self.state.forget_bundles({str(item["bundle_sha256"]) for item in (self.active, was) if item is not None})


def _activated(value: Any) -> dict[str, Any]:
    """Parse active.json. Raises for any other content."""
    sequence = value["sequence"]
    if not isinstance(sequence, int) or isinstance(sequence, bool) or not 0 <= sequence < 2**63:
        raise ValueError("a sequence is a number")
    if not re.fullmatch("[0-9a-f]{64}", value["bundle_sha256"]):
        raise ValueError("a digest is 64 hex digits")
    deployment_id = as_uuid(value["deployment_id"])
    return {"deployment_id": deployment_id, "bundle_sha256": value["bundle_sha256"], "sequence": sequence}


def _not_written(error: OSError) -> ActivationError:
    code = "disk_full" if error.errno in FULL else "state_not_written"
    return ActivationError(code, f"the state folder can't be written: {error.strerror}")
