"""Several processes, each with a Django of its own, and worlds to race in."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from tests import invariants
from tests.deployments.world import World
from tests.support import Caller, Tenant

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 3


@dataclass(frozen=True)
class Answer:
    """What one call came to: `status` is 0 for what was no request."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> str:
        """The stable code of a problem document."""
        return str(self.body["code"])


class Racers:
    """Processes that make calls at one moment, each of its calls in a thread."""

    def __init__(self) -> None:
        environment = dict(os.environ)
        settings = connection.settings_dict
        if connection.vendor == "postgresql":
            given = environment["BYTEOR_CLOUD_DATABASE_URL"]
            environment["BYTEOR_CLOUD_DATABASE_URL"] = f"{given.rsplit('/', 1)[0]}/{settings['NAME']}"
        else:
            environment["BYTEOR_CLOUD_DATABASE_URL"] = f"sqlite:///{settings['NAME']}"
        command = [sys.executable, "-m", "tests.races.racer"]
        self.processes = [
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(PROCESSES)
        ]
        for process in self.processes:
            self._read(process, "here")

    def _read(self, process: subprocess.Popen[str], expected: str | None = None) -> str:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line, f"a racing process ended: {process.poll()}"
        assert expected in (None, line), line
        return line

    def _write(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def race(self, *calls: dict[str, Any], everywhere: tuple[dict[str, Any], ...] = ()) -> list[Answer]:
        """Make `calls` at once, dealt out to the processes in turn, and in each of them also `everywhere`.

        Answers those of `calls`, in order. Raises AssertionError for what raised, or was answered 5xx.
        """
        hands = [list(calls[n :: len(self.processes)]) for n in range(len(self.processes))]
        playing = [(process, hand) for process, hand in zip(self.processes, hands, strict=True) if hand]
        for process, hand in playing:
            self._write(process, json.dumps([*hand, *everywhere]))
        for process, _ in playing:
            self._read(process, "ready")
        for process, _ in playing:
            self._write(process, "go")
        results = [json.loads(self._read(process)) for process, _ in playing]
        broken = [r for result in results for r in result if "error" in r or r.get("status", 0) >= 500]
        assert not broken, broken
        dealt = [result[: len(hand)] for result, (_, hand) in zip(results, playing, strict=True)]
        in_order = [r for turn in itertools.zip_longest(*dealt) for r in turn if r is not None]
        return [Answer(r.get("status", 0), r.get("body"), r.get("headers", {})) for r in in_order]

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


@pytest.fixture(scope="module")
def racers(django_db_setup: None, django_db_blocker: Any) -> Iterator[Racers]:
    """Three processes for the module's races."""
    with django_db_blocker.unblock():
        pool = Racers()
    yield pool
    pool.close()


def post(caller: Caller, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
    """A POST to be raced; `more` is `wait` or `headers`."""
    return {"method": "POST", "path": path, "body": {} if body is None else body, "token": caller.token, **more}


def statuses(answers: list[Answer]) -> Counter[int]:
    """How often each status was answered."""
    return Counter(answer.status for answer in answers)


@pytest.fixture
def dev(transactional_db: None, tenant: Tenant) -> World:
    """Two hosts where the policy itself approves."""
    world = World(tenant, tenant.dev)
    world.enroll(2)
    return world


@pytest.fixture
def staging(transactional_db: None, tenant: Tenant) -> World:
    """Two hosts where one other person has to approve."""
    world = World(tenant, tenant.staging)
    world.enroll(2)
    return world


@pytest.fixture
def prod(transactional_db: None, tenant: Tenant) -> World:
    """Two hosts where two other people have to approve."""
    world = World(tenant, tenant.prod)
    world.enroll(2)
    return world


@pytest.fixture(autouse=True)
def _nothing_is_left_broken(transactional_db: None) -> Iterator[None]:
    """After each race every invariant holds, and nothing is held."""
    yield
    invariants.check()
