"""A pytest plugin that, in place of running the tests once, runs for each mutant those tests that execute its line.

Everything is imported, collected and set up once, then each mutant has a forked process: the function's code is
exchanged there, so that decorated and imported functions change everywhere at once. A first fork runs all tests without
any change, to learn which pass, how long they take, and which lines they execute. The database is a file of which each fork
begins with the same copy.

Code that runs at import (constants, class bodies, default values) is not mutated, and what a test starts in another process
is not changed.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import pickle
import select
import shutil
import signal
import time
import types
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.making import ROOT, Mutant, make_mutants

SLOWER = 10
"""A test that takes so many times as long as without the change, and the plan's `patience` in seconds, never ends."""
IDLE = 5
"""A test that mostly waits is given so many times as long as one that computes."""
LOOK_EVERY = 0.2


@dataclass
class Baseline:
    """What the tests do without any change."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of the tests that pass."""
    failed: list[str] = field(default_factory=list)
    tests: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    """By file and line."""


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("mutants")


def _run(item: pytest.Item) -> str:
    """`passed`, `failed` or `skipped`. Fixtures of sessions stay, all others are torn down."""
    item._initrequest()  # type: ignore[attr-defined]
    reports = runtestprotocol(item, log=False, nextitem=item.session)  # type: ignore[arg-type]
    outcomes = {"failed" if r.failed and not hasattr(r, "wasxfail") else r.outcome for r in reports}
    return next((o for o in ("failed", "skipped") if o in outcomes), "passed")


class _Database:
    """The test database's file, which each fork finds as it was at the beginning."""

    def __init__(self) -> None:
        from django.db import connections

        from apps.core import wake

        wake.close()
        connections.close_all()
        self.path = Path(str(connections["default"].settings_dict["NAME"]))
        self.kept = self.path.with_suffix(".kept")
        if self.path.exists():
            shutil.copyfile(self.path, self.kept)

    def restore(self) -> None:
        if self.kept.exists():
            for ending in ("-wal", "-shm", "-journal"):
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
            shutil.copyfile(self.kept, self.path)


def _fork(work: Any) -> tuple[int, int]:
    """Run `work(descriptor)` in a process of its own; its id, and the descriptor of what it writes."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 1
    try:
        os.setsid()
        os.close(reading)
        work(writing)
        code = 0
    finally:
        os._exit(code)


def _processor_seconds(pid: int) -> float:
    """The processor time that a process of this one has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end(pid: int) -> None:
    """End the process and those that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _baseline(items: list[pytest.Item], paths: list[str], target: Path) -> Baseline:
    def work(_: int) -> None:
        measured = coverage.Coverage(data_file=None, config_file=False, include=[str(ROOT / path) for path in paths])
        measured.start()
        result = Baseline()
        for item in items:
            measured.switch_context(item.nodeid)
            began = time.monotonic()
            outcome = _run(item)
            if outcome == "passed":
                result.seconds[item.nodeid] = time.monotonic() - began
            elif outcome == "failed":
                result.failed.append(item.nodeid)
        measured.stop()
        data = measured.get_data()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                result.tests[str(Path(file).relative_to(ROOT)), line] = set(contexts) & result.seconds.keys()
        result.tests = dict(result.tests)
        target.write_bytes(pickle.dumps(result))

    pid, reading = _fork(work)
    os.waitpid(pid, 0)
    os.close(reading)
    return pickle.loads(target.read_bytes())


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The codes of functions and methods of a module's code, not of those inside functions."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if "<locals>" in constant.co_qualname:
                continue
            yield constant
            yield from _codes(constant)


def _live_functions(paths: list[str]) -> dict[tuple[str, str, int], list[types.FunctionType]]:
    """All functions of the modules that exist now, by file, name and first line, wherever they are referred to."""
    files = {str(ROOT / path): path for path in paths}
    found = defaultdict(list)
    for thing in gc.get_objects():
        # by its type alone: `isinstance` asks objects that are made at their first use, and so makes them
        if type(thing) is types.FunctionType and thing.__code__.co_filename in files:
            code = thing.__code__
            found[files[code.co_filename], code.co_qualname, code.co_firstlineno].append(thing)
    return dict(found)


def _changed_code(mutant: Mutant) -> types.CodeType | None:
    module = compile(mutant.source(), str(ROOT / mutant.path), "exec", dont_inherit=True)
    # without its decorators the function begins at or below its first line
    fitting = [c for c in _codes(module) if c.co_qualname == mutant.function and c.co_firstlineno >= mutant.first_line]
    return min(fitting, key=lambda c: c.co_firstlineno, default=None)


class Runner:
    """Runs mutants, and remembers which tests were good at noticing them."""

    def __init__(self, items: list[pytest.Item], baseline: Baseline, database: _Database, plan: dict[str, Any]) -> None:
        self.items = {item.nodeid: item for item in items}
        self.baseline, self.database = baseline, database
        self.limit, self.patience = plan["seconds"], plan["patience"]
        self.functions: dict[tuple[str, str, int], list[types.FunctionType]] = {}
        self.caches: list[Any] = []
        self.noticed: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.alone: dict[str, bool] = {}

    def chosen(self, mutant: Mutant) -> list[str]:
        """The tests that execute the change: first those that noticed others of this function, then the quickest."""
        hitting = set().union(*(self.baseline.tests.get((mutant.path, line), ()) for line in mutant.lines))
        hitting &= self.baseline.seconds.keys()
        noticed = self.noticed[mutant.path, mutant.function]
        return sorted(hitting, key=lambda test: (-noticed[test], self.baseline.seconds[test]))

    def run(self, mutant: Mutant) -> dict[str, Any]:
        """The verdict on one mutant: killed, survived, undecided, or not applied, and how it came to it."""
        began = time.monotonic()
        verdict, by = "", ""
        while not verdict:
            tests = self.chosen(mutant)
            verdict, by = self._verdict(mutant, tests) if tests else ("survived", "")
            if by in self.baseline.seconds and not self.passes_alone(by):
                # it would fail without the change too: it is no witness
                del self.baseline.seconds[by]
                verdict = ""
        if verdict == "killed":
            self.noticed[mutant.path, mutant.function][by] += 1
        return {
            "path": mutant.path,
            "function": mutant.function,
            "change": mutant.change,
            "line": mutant.line,
            "kind": mutant.kind,
            "verdict": verdict,
            "by": by,
            "tests": len(tests),
            "seconds": round(time.monotonic() - began, 2),
        }

    def passes_alone(self, test: str) -> bool:
        """True if the test passes without any change and without those before it. Each is tried once."""
        if test not in self.alone:
            self.alone[test] = self._tried([], None, [test])[0] == "survived"
        return self.alone[test]

    def _verdict(self, mutant: Mutant, tests: list[str]) -> tuple[str, str]:
        functions = self.functions.get((mutant.path, mutant.function, mutant.first_line), [])
        code = _changed_code(mutant)
        if code is None or not functions or any(f.__code__.co_freevars != code.co_freevars for f in functions):
            return "not applied", ""
        return self._tried(functions, code, tests)

    def _tried(
        self, functions: list[types.FunctionType], code: types.CodeType | None, tests: list[str]
    ) -> tuple[str, str]:
        """Run `tests` with `code` in place of that of `functions`, to the first that fails: verdict and test."""

        def work(writing: int) -> None:
            for function in functions:
                function.__code__ = code
            for cache in self.caches:
                cache.cache_clear()
            for number, test in enumerate(tests):
                os.write(writing, f"{number}\n".encode())
                if _run(self.items[test]) == "failed":
                    os.write(writing, b"killed\n")
                    return
            os.write(writing, b"survived\n")

        self.database.restore()
        pid, reading = _fork(work)
        try:
            return self._wait(pid, reading, tests)
        finally:
            os.close(reading)
            _end(pid)

    def _wait(self, pid: int, reading: int, tests: list[str]) -> tuple[str, str]:
        ends = time.monotonic() + self.limit
        number, since, used = 0, time.monotonic(), 0.0
        text = b""
        while True:
            allowed = SLOWER * self.baseline.seconds[tests[number]] + self.patience
            left = max(since + allowed - time.monotonic(), LOOK_EVERY)
            ready, _, _ = select.select([reading], [], [], max(0.0, min(left, ends - time.monotonic())))
            if not ready:
                now = time.monotonic()
                # on a busy machine it has not run for as long as it has been waited for
                ran = _processor_seconds(pid) - used
                if now - since >= allowed and (ran >= allowed / 2 or now - since >= IDLE * allowed):
                    return "killed", f"{tests[number]} (never ended)"
                if now >= ends:
                    return "undecided", f"{number} of {len(tests)} tests"
                continue
            got = os.read(reading, 65536)
            if not got:
                return "killed", f"{tests[number]} (ended the process)"
            text += got
            *words, text = text.split(b"\n")
            for word in words:
                if word == b"killed":
                    return "killed", tests[number]
                if word == b"survived":
                    return "survived", ""
                number, since, used = int(word), time.monotonic(), _processor_seconds(pid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    plan = json.loads(os.environ["BYTEOR_MUTANTS"])
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    results = Path(plan["results"])
    for path in plan["paths"]:
        # what only a test imports, when it runs, would be imported in its fork alone
        importlib.import_module(path.removesuffix(".py").replace("/", "."))
    _run(session.items[0])  # sets up what the whole session uses
    database = _Database()
    began = time.monotonic()
    baseline = _baseline(session.items, plan["paths"], results.with_suffix(".baseline"))
    reporter.write_line(f"{len(baseline.seconds)} tests in {time.monotonic() - began:.0f} s without a change")
    for test in baseline.failed:
        reporter.write_line(f"  fails without a change, not used: {test}")
    runner = Runner(session.items, baseline, database, plan)
    runner.functions = _live_functions(plan["paths"])
    files = {str(ROOT / path) for path in plan["paths"]}
    runner.caches = [
        thing
        for thing in gc.get_objects()
        if type(thing) is functools._lru_cache_wrapper
        and type(thing.__wrapped__) is types.FunctionType
        and thing.__wrapped__.__code__.co_filename in files
    ]
    gc.collect()
    gc.freeze()
    with results.open("a") as out:
        for path in plan["paths"]:
            for mutant in make_mutants(path)[: plan["sample"]]:
                result = runner.run(mutant)
                out.write(json.dumps(result) + "\n")
                out.flush()
                if result["verdict"] != "killed":
                    reporter.write_line(
                        f"{result['verdict']:<11} {path}:{mutant.line} {mutant.function}: {mutant.change} "
                        f"[{result['tests']} tests, {result['seconds']} s]"
                    )
    database.restore()
    return True
