"""What slow clients of all kinds at once cost honest ones: the server as `manage.py run_web` starts it, with and without them."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from pathlib import Path

from bench.measure import report
from tests.server.test_slow_clients import Crowd, Probe, resident
from tests.web import Server

ROUNDS = 3
SECONDS = 3.0
"""Of each round without and with them, from the moment in which they come. The server ends the first of them after 10 s."""


def main() -> None:
    """Measure and print, in about half a minute."""
    pairs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {"median": [], "longest": []}
    most = 0
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="byteor-bench-")))
        server = stack.enter_context(contextlib.closing(Server(home, log=home / "web.log")))
        probe = Probe(server)
        probe.times(1)
        for _ in range(ROUNDS):
            idle = probe.times(SECONDS)
            before = resident(server.worker)
            with contextlib.closing(Crowd(server)) as crowd:
                crowd.join_with_all_kinds()
                meanwhile = probe.times(SECONDS)
                most = max(most, resident(server.worker) - before)
            for kind, of in (("median", statistics.median), ("longest", max)):
                pairs[kind].append(({n: of(t) for n, t in meanwhile.items()}, {n: of(t) for n, t in idle.items()}))
    for kind, rounds in pairs.items():
        for name in rounds[0][0]:
            report(
                f"{name}, {kind} answer: beside slow clients / idle",
                [(meanwhile[name], idle[name]) for meanwhile, idle in rounds],
                wanted="<= 2",
            )
    print(f"memory: {most / 2**20:.1f} MiB more   wanted < 64 MiB", flush=True)


if __name__ == "__main__":
    main()
