"""A pipeline in a process of its own, to be killed: `python -m tests.runtime.agent.walked DATA STATE`. It ends on SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path

from apps.runtime.agent.limits import Limits
from apps.runtime.agent.pipeline import Pipeline
from apps.runtime.agent.pipeline.files import FileSource
from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle
from apps.runtime.spec import compile_spec

SPEC = (
    "spec.version=1\npipeline.name=t\npipeline.target=SingleRing\n"
    "single_ring.stages.0.id=s0\nsingle_ring.stages.0.op=identity\n"
)
ADAPTERS = {"ingress": {"type": "file", "path": "in.jsonl"}, "egress": {"type": "file", "path": "gate/out"}}


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk
        print(text, flush=True)


def main(data: Path, state: Path) -> None:
    """Run until SIGTERM."""
    ended: list[int] = []  # no event: a handler that takes a lock may wait for the thread that it interrupts
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    defaults = FileSource.__init__.__kwdefaults__
    assert defaults is not None
    defaults["quiet_seconds"] = 1.0
    compiled = compile_spec(SPEC)
    assert compiled.plan is not None
    bundle = VerifiedBundle(
        {}, dict(compiled.plan.as_dict()), {"adapters": ADAPTERS}, compiled.canonical, (), 1, "d", "0" * 64, ()
    )
    pipeline = Pipeline(bundle, Limits.given(data), State(state), _log)
    pipeline.start()
    print("started", flush=True)
    while not ended:
        time.sleep(0.05)
        if not pipeline.alive():
            print(f"ended by itself: {pipeline.problem()}", flush=True)
            sys.exit(3)
    pipeline.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
