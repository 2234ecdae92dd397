"""What runs on this host, and the switch from one bundle to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apps.runtime.agent.pipeline import ActivationError, Limits, Pipeline, settle
from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.faults import fault_point
from apps.runtime.trust import TrustError


class Runner:
    """At most one pipeline. `active` is what `active.json` says: deployment id, digest and sequence of what was activated last."""

    def __init__(self, state: State, limits: Limits, say: Callable[[str], None]) -> None:
        self.state, self.limits, self.say = state, limits, say
        self.active: dict[str, Any] | None = state.read("active.json")
        self.pipeline: Pipeline | None = None

    def running(self) -> dict[str, Any] | None:
        """What really runs now; None when nothing does."""
        return dict(self.active) if self.active is not None and self.pipeline is not None else None

    def runs_well(self, wanted: dict[str, Any]) -> bool:
        """Is `wanted` what runs, and is it well?"""
        return self.active == wanted and self.pipeline is not None and self.pipeline.healthy()

    def health(self) -> tuple[bool, str]:
        """(well, why not)."""
        if self.pipeline is None:
            return True, ""
        return self.pipeline.healthy(), self.pipeline.error or ""

    def stats(self) -> dict[str, Any]:
        """Counters of what runs."""
        return {"stages": self.pipeline.stats()} if self.pipeline is not None else {}

    def resume(self, verify: Callable[[bytes, str], VerifiedBundle]) -> bool:
        """Start again what was activated once, without asking anybody. False when that can't be: then nothing is active."""
        if self.active is None:
            return True
        try:
            sha256 = self.active["bundle_sha256"]
            bundle = verify(self.state.bundle_path(sha256).read_bytes(), sha256)
            self.pipeline = self._started(bundle)
        except (OSError, TrustError, ActivationError) as error:
            self.say(f"what was active can't be started: {error}")
            self.active = None
            return False
        self.say(f"running bundle {bundle.sha256[:12]} again")
        return True

    def _started(self, bundle: VerifiedBundle) -> Pipeline:
        pipeline = Pipeline(bundle, self.limits, self.state, self.say)
        pipeline.start()
        return pipeline

    def shut_down(self) -> None:
        """End what runs; the next start runs it again."""
        if self.pipeline is not None:
            self.pipeline.stop()
            self.pipeline = None

    def stop(self) -> None:
        """End what runs, for good."""
        self.shut_down()
        self.active = None
        self.state.remove("active.json")
        self.say("pipeline stopped")

    def switch(self, bundle: VerifiedBundle, archive: bytes, wanted: dict[str, Any]) -> None:
        """Stop the old, start the new, look at it a moment; go back to the old when the new does not stand."""
        new = Pipeline(bundle, self.limits, self.state, self.say)
        old, was = self.pipeline, self.active
        if old is not None:
            old.stop()
        fault_point("agent.switch.old_stopped")
        problem = self._try(new)
        if problem is not None:
            new.stop()
            self.pipeline = None
            if old is not None and was is not None:
                self._go_back(old.bundle)
            raise problem
        fault_point("agent.switch.new_stands")
        self.state.keep_bundle(bundle.sha256, archive)
        fault_point("agent.switch.bundle_kept")
        self.state.write("active.json", wanted)
        fault_point("agent.switch.noted")
        self.pipeline, self.active = new, wanted
        self.state.forget_bundles({bundle.sha256, *({was["bundle_sha256"]} if was else ())})

    def _try(self, new: Pipeline) -> ActivationError | None:
        try:
            new.start()
        except ActivationError as error:
            return error
        return None if settle(new) else ActivationError("unhealthy", new.error or "the pipeline ended at once")

    def _go_back(self, former: VerifiedBundle) -> None:
        self.pipeline = self._started(former)
        self.say("went back to what ran before")
