"""A pipeline that ends by itself again and again, and reports that are not taken for a long time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.runtime.agent import outbox as outbox_module
from apps.runtime.agent import runner as module
from apps.runtime.agent.client import Unreachable
from apps.runtime.agent.limits import Limits
from apps.runtime.agent.outbox import Outbox
from apps.runtime.agent.pipeline.files import FileSource
from apps.runtime.agent.runner import Runner
from apps.runtime.agent.state import State
from apps.runtime.bundle import VerifiedBundle, read_bundle, verify_bundle
from tests.runtime.agent.waiting import until
from tests.runtime.making import DEPLOYMENT, Maker

TAKE = FileSource.take

WANTED: dict[str, Any] = {"deployment_id": DEPLOYMENT, "bundle_sha256": "", "sequence": 1000}


class Machine:
    """A runner on a host of its own."""

    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.data.mkdir()
        self.logged: list[str] = []
        self.state = State(home / "state", lock=False)
        self.runner = Runner(self.state, Limits.given(self.data), self.logged.append)
        self.maker = Maker()

    def bundle(self) -> tuple[VerifiedBundle, bytes]:
        made = self.maker.bundle()
        return verify_bundle(read_bundle(made.archive), keys=self.maker.keys), made.archive

    def break_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on nothing can be taken from a file, for an unforeseen reason."""

        def fails(*_: object) -> None:
            raise ValueError("a file can't be understood")

        monkeypatch.setattr(FileSource, "take", fails)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    return Machine(tmp_path)


def test_after_five_quick_ends_it_stays_down_and_reports_it_and_nothing_else_is_chosen(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    bundle, archive = machine.bundle()
    wanted = {**WANTED, "bundle_sha256": bundle.sha256}
    machine.runner.switch(bundle, archive, wanted)
    machine.break_it(monkeypatch)

    def down() -> bool:
        machine.runner.tend()
        return "stays down" in machine.runner.health()[1]

    until(down)
    assert sum("ended" in line and "the pipeline ended and" in line for line in machine.logged) == 4
    assert not machine.runner.tend()
    assert machine.runner.health()[0] is False
    machine.runner.note_reported(machine.runner.health()[1])
    assert machine.runner.health()[0] is False
    assert machine.runner.running() == wanted
    assert not machine.runner.runs_well(wanted)
    machine.runner.shut_down()


def test_one_that_lasted_is_started_again_as_if_for_the_first_time(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LASTS_SECONDS", 0.0)
    bundle, archive = machine.bundle()
    machine.runner.switch(bundle, archive, {**WANTED, "bundle_sha256": bundle.sha256})
    machine.break_it(monkeypatch)
    for _ in range(8):
        until(machine.runner.tend)
    assert "stays down" not in machine.runner.health()[1]
    monkeypatch.setattr(FileSource, "take", TAKE)
    until(lambda: machine.runner.tend() or machine.runner.pipeline is not None)
    until(lambda: not machine.runner.tend() and machine.runner.pipeline is not None)
    well, words = machine.runner.health()
    assert not well  # until a heartbeat has reported it
    machine.runner.note_reported(words)
    assert machine.runner.health() == (True, "")
    machine.runner.shut_down()


def test_a_damaged_file_that_can_not_be_renamed_is_looked_at_again_later(machine: Machine):
    bundle, archive = machine.bundle()
    machine.runner.switch(bundle, archive, {**WANTED, "bundle_sha256": bundle.sha256})
    machine.runner.shut_down()
    (machine.data / "out.jsonl").write_bytes(b"another's last line")
    (kept,) = machine.state.root.glob("egress-*.json")
    kept.write_bytes(b"damaged")
    in_its_place = kept.with_name(f"{kept.name}.damaged")
    in_its_place.mkdir()
    again = Runner(machine.state, machine.runner.limits, machine.logged.append)
    assert again.resume(lambda data, sha256: bundle)
    assert "state_not_written" in again.health()[1]
    until(again.tend)
    in_its_place.rmdir()
    until(lambda: not again.tend() and again.pipeline is not None)
    again.note_reported(again.health()[1])
    assert again.health() == (True, "")
    again.shut_down()


def test_a_port_that_is_taken_at_the_start_is_tried_again(machine: Machine):
    bundle, archive = machine.bundle()
    machine.runner.switch(bundle, archive, {**WANTED, "bundle_sha256": bundle.sha256})
    machine.runner.shut_down()
    (machine.data / "out.jsonl").unlink(missing_ok=True)
    (machine.data / "out.jsonl").mkdir()
    again = Runner(machine.state, machine.runner.limits, machine.logged.append)
    assert again.resume(lambda data, sha256: bundle)
    assert again.health()[0] is False
    assert again.running() is not None
    (machine.data / "out.jsonl").rmdir()
    until(lambda: not again.tend() and again.pipeline is not None)
    again.note_reported(again.health()[1])
    assert again.health() == (True, "")
    again.shut_down()


def test_a_switch_is_held_up_once_and_not_for_each_report_while_there_is_no_answer(tmp_path: Path):
    tried: list[str] = []

    def send(to: str, body: dict[str, Any]) -> None:
        tried.append(body["status"])
        raise Unreachable("away")

    outbox = Outbox(State(tmp_path, lock=False), send, lambda text: None)
    for status in ("fetched", "verified", "activated"):
        outbox.put("d", {"status": status})
    assert tried == ["fetched"]
    assert len(outbox) == 3


def test_reports_beyond_the_cap_lose_what_later_ones_overtook_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox_module, "MAX_REPORTS", 8)
    sent: list[tuple[str, str]] = []
    away = True

    def send(to: str, body: dict[str, Any]) -> None:
        if away:
            raise Unreachable("away")
        sent.append((to, body["status"]))

    state = State(tmp_path, lock=False)
    outbox = Outbox(state, send, lambda text: None)
    for number in range(8):
        for status in ("fetched", "activated"):
            outbox.put(f"{DEPLOYMENT[:-1]}{number}", {"status": status})
    assert len(outbox) == 8
    away = False
    Outbox(state, send, lambda text: None).flush()
    assert sent == [(f"{DEPLOYMENT[:-1]}{number}", "activated") for number in range(8)]
