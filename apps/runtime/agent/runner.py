"""What runs on this host: the switch from one bundle to another, and what happens when a pipeline ends by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline import Pipeline, settle
from apps.runtime.agent.pipeline.run import FULL
from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.faults import fault_point
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
    untold: bool = False
    started_at: float = 0.0
    again_at: float | None = None

    def note(self, why: str) -> None:
        now = time.monotonic()
        self.quick = 1 if now - self.started_at >= LASTS_SECONDS else self.quick + 1
        self.why, self.untold = why, True
        pause = min(FIRST_PAUSE * 2 ** (self.quick - 1), LONGEST_PAUSE)
        self.again_at = now + pause if self.quick < MOST_QUICK_ENDS else None

    def words(self) -> str:
        if self.again_at is None:
            return f"the pipeline ended {self.quick} times, each within a minute, and stays down: {self.why}"
        return f"the pipeline ended and is started again: {self.why}"


class Runner:
    """At most one pipeline. Safe from several threads.

    `active` is what `active.json` says: deployment id, digest and sequence of what was activated last. Only `switch` and `stop`
    change it: a pipeline that ends by itself is started again, never another one in its place.
    """

    def __init__(self, state: State, limits: Limits, say: Callable[[str], None]) -> None:
        self.state, self.limits, self.say = state, limits, say
        self.active: dict[str, Any] | None = state.read("active.json")
        self.pipeline: Pipeline | None = None
        self._bundle: VerifiedBundle | None = None
        self._ends = _Ends()
        self._turn = threading.RLock()

    # --- what others ask ---

    def running(self) -> dict[str, Any] | None:
        """What is active here, well or not; None when nothing is."""
        return dict(self.active) if self.active is not None and self._bundle is not None else None

    def runs_well(self, wanted: dict[str, Any]) -> bool:
        """Is `wanted` what runs, and is it well?"""
        return self.active == wanted and self.pipeline is not None and self.pipeline.healthy()

    def health(self) -> tuple[bool, str]:
        """(well, why not). An end that no heartbeat has told of yet counts, even if it runs again."""
        with self._turn:
            if self._bundle is None:
                return True, ""
            if self.pipeline is None or self._ends.untold:
                return False, self._ends.words()
            return self.pipeline.healthy(), self.pipeline.problem()

    def told(self, words: str) -> None:
        """A heartbeat that gave `words` as the reason has arrived."""
        with self._turn:
            if words == self._ends.words():
                self._ends.untold = False

    def settled(self) -> bool:
        """Nothing is active, or it has run well for a while."""
        well, _ = self.health()
        return self._bundle is None or (well and time.monotonic() - self._ends.started_at > SETTLED_SECONDS)

    def stats(self) -> dict[str, Any]:
        """Counters of what runs."""
        pipeline = self.pipeline
        return {"stages": pipeline.stats()} if pipeline is not None else {}

    # --- starting and ending ---

    def resume(self, verify: Callable[[bytes, str], VerifiedBundle]) -> bool:
        """Start again what was activated once, without asking anybody.

        False when it is not there or can't be verified: then nothing is active. One that can't be started is tried again later.
        """
        if self.active is None:
            return True
        try:
            sha256 = self.active["bundle_sha256"]
            self._bundle = verify(self.state.bundle_path(sha256).read_bytes(), sha256)
        except (OSError, TrustError) as error:
            self.say(f"what was active can't be started: {error}")
            self.active = None
            return False
        if self._start_again():
            self.say(f"running bundle {self._bundle.sha256[:12]} again")
        return True

    def tend(self) -> bool:
        """Look after what runs; True when it has just ended by itself. Call it often."""
        with self._turn:
            if self.pipeline is not None and not self.pipeline.alive():
                why = self.pipeline.problem()
                self.pipeline.stop()
                self.pipeline = None
                self._ends.note(why)
                self.say(self._ends.words())
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
                self.say(self._ends.words())
                return False
            return True

    def _started(self, bundle: VerifiedBundle) -> Pipeline:
        pipeline = Pipeline(bundle, self.limits, self.state, self.say)
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
            self.state.remove("active.json")
            fault_point("agent.stop.noted")
            self.state.forget_bundles(set())
            self.say("pipeline stopped")

    # --- the switch ---

    def switch(self, bundle: VerifiedBundle, archive: bytes, wanted: dict[str, Any]) -> None:
        """Make `bundle` what runs here. Raises ActivationError when it can't be: what ran before runs then.

        Ended by force at any moment, the next start runs what `active.json` says, and the directive, which was not remembered
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
            self.forget_others(was)

    def prepare(self, bundle: VerifiedBundle) -> Pipeline:
        """The new pipeline, checked against everything this host allows. Nothing is changed yet."""
        return Pipeline(bundle, self.limits, self.state, self.say)

    def keep_archive(self, bundle: VerifiedBundle, archive: bytes) -> None:
        """Have the archive on disk before anything is switched. ActivationError `disk_full` or `state_not_written`."""
        try:
            self.state.keep_bundle(bundle.sha256, archive)
        except OSError as error:
            raise _not_written(error) from error

    def stop_former(self) -> VerifiedBundle | None:
        """End what runs, and say what it was."""
        former = self._bundle
        if self.pipeline is not None:
            self.pipeline.stop()
            self.pipeline = None
        return former

    def start_new(self, new: Pipeline) -> None:
        """Start it, and see that it stands for a moment. Raises ActivationError."""
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
            self.say("went back to what ran before")

    def forget_others(self, was: dict[str, Any] | None) -> None:
        """Keep the archives of what runs and of what ran before it, and no others."""
        assert self.active is not None
        self.state.forget_bundles({str(item["bundle_sha256"]) for item in (self.active, was) if item is not None})


def _not_written(error: OSError) -> ActivationError:
    code = "disk_full" if error.errno in FULL else "state_not_written"
    return ActivationError(code, f"the state folder can't be written: {error.strerror}")
