"""Processes that a signal asks to stop."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    """What the program prints; a program that waits for itself is ended after a minute, and fails."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_signal_that_comes_while_the_main_thread_holds_a_lock_waits_for_no_one_and_is_received() -> None:
    """As when it comes in the middle of `Event.wait`, which holds the lock that `Event.set` takes."""
    code = """
        import os, signal, threading
        from apps.core.processes import on_stop_signal

        lock, received = threading.Lock(), threading.Event()

        def stop():
            with lock:
                received.set()

        on_stop_signal(stop)
        with lock:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            print("goes on", received.is_set())
        print("received", received.wait(30))
    """
    assert run(code) == "goes on False\nreceived True\n"


def test_handlers_that_are_kept_run_too_and_those_that_are_not_do_not() -> None:
    code = """
        import os, signal, threading
        from apps.core.processes import on_stop_signal

        seen, stopped = [], threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: seen.append(number))
        on_stop_signal(stopped.set, numbers=[signal.SIGTERM], keep_handlers=True)
        on_stop_signal(stopped.set, numbers=[signal.SIGINT])
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        print(stopped.wait(30), seen == [signal.SIGTERM])
    """
    assert run(code) == "True True\n"


KNOWN_HANDLERS = {
    "apps/core/processes.py": "writes to a pipe",
    "apps/runtime/agent/cli.py": "does nothing; the wake-up descriptor ends a thread's read",
    "apps/runtime/agent/supervise.py": "sets a flag and writes to a pipe",
    "byteor/server/front.py": "calls the event loop, which allows it from a handler",
}


def test_no_other_module_sets_a_signal_handler() -> None:
    """One that takes a lock may wait for the thread that it interrupts: `on_stop_signal` is the way."""
    found = set()
    for path in [*ROOT.glob("apps/**/*.py"), *ROOT.glob("byteor/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "signal.signal":
                handler = ast.unparse(node.args[1])
                if handler not in ("signal.SIG_DFL", "signal.SIG_IGN"):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == set(KNOWN_HANDLERS)
