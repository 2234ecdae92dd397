"""The state folder: whose it is, what is written through, and what happens to files that are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from apps.runtime.agent.cli import main
from apps.runtime.agent.outbox import Outbox
from apps.runtime.agent.state import State, StateError
from apps.runtime.trust import KeySet, TrustError
from tests.runtime.making import ORG, Maker

UUID = "01890000-0000-7000-8000-0000000000aa"


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path):
    folder = tmp_path / "state"
    State(folder, lock=False)
    for mode in (0o720, 0o702, 0o777):
        folder.chmod(mode)
        with pytest.raises(StateError, match="written to by others"):
            State(folder, lock=False)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    State(tmp_path / "state", lock=False)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    for lock in (True, False):
        with pytest.raises(StateError, match="another user"):
            State(tmp_path / "state", lock=lock)


def test_what_is_no_folder_or_is_used_by_another_agent_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="can't be used"):
        State(tmp_path / "file", lock=False)
    with pytest.raises(StateError, match="is no folder"):
        State(tmp_path / "file", lock=False, create=False)
    first = State(tmp_path / "state")
    with pytest.raises(StateError, match="another agent uses"):
        State(tmp_path / "state")
    assert State(tmp_path / "state", lock=False, create=False).root == first.root
    assert first._lock_file is not None
    first._lock_file.close()
    second = State(tmp_path / "state")
    assert second._lock_file is not None
    second._lock_file.close()


def test_a_link_planted_in_place_of_a_draft_is_not_written_through(tmp_path: Path):
    state, prey = State(tmp_path / "state", lock=False), tmp_path / "prey"
    prey.write_text("as it was")
    (state.root / ".keys.json.new").symlink_to(prey)
    state.write("keys.json", {"a": 1})
    assert prey.read_text() == "as it was"
    assert not (state.root / "keys.json").is_symlink()
    assert (state.root / "keys.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": 1, "a": 2}', "\xff"])
def test_a_file_that_is_no_json_or_names_a_key_twice_is_damaged(tmp_path: Path, text: str):
    state = State(tmp_path / "state", lock=False)
    (state.root / "keys.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StateError, match="damaged"):
        state.read("keys.json")


DAMAGED: list[Any] = [
    b"",
    b"{}",
    b"[1]",
    b'[{"to": "x", "body": {"status": "failed"}}]',
    b'[{"to": 1}]',
    b"7",
    b'"x"',
    b"\xff",
]


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_queue_of_reports_is_renamed_and_the_agent_goes_on(tmp_path: Path, data: bytes):
    logged: list[str] = []
    state = State(tmp_path / "state", lock=False, log=logged.append)
    (state.root / "outbox.json").write_bytes(data)
    sent: list[str] = []
    outbox = Outbox(state, lambda to, body: sent.append(to), logged.append)
    if data != b"{}":  # an empty object is an empty queue
        assert "outbox.json was damaged and is set aside as outbox.json.damaged" in logged
        assert (state.root / "outbox.json.damaged").read_bytes() == data
    outbox.put(UUID, {"status": "failed"})
    assert sent == [UUID]


def test_reports_that_only_an_unsigned_answer_asked_for_make_no_other_report_go(tmp_path: Path):
    def away(to: str, body: dict[str, Any]) -> None:
        raise ConnectionError

    outbox = Outbox(State(tmp_path / "state", lock=False), lambda to, body: None, lambda text: None)
    outbox._quiet_until = float("inf")
    outbox.put(UUID, {"status": "activated"})
    for number in range(300):
        outbox.put(f"01890000-0000-7000-8000-{number:012}", {"status": "failed"}, unproven=True)
    assert len(outbox) == 6
    assert outbox._waiting[0]["to"] == UUID


def test_a_kept_bundle_that_was_damaged_is_not_there(tmp_path: Path):
    logged: list[str] = []
    state = State(tmp_path / "state", lock=False, log=logged.append)
    sha256 = "0" * 64
    assert state.kept_bundle(sha256) is None
    state.keep_bundle(sha256, b"not of this digest")
    assert state.kept_bundle(sha256) is None
    assert not state.bundle_path(sha256).exists()
    assert logged == ["the kept bundle 000000000000 is damaged"]
    for bad in ("../../x", "0" * 63, "G" * 64, "0" * 64 + "/"):
        with pytest.raises(TrustError, match="bad_directive"):
            state.bundle_path(bad)


def test_a_write_that_fails_leaves_the_file_as_it_was_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = State(tmp_path / "state", lock=False)
    state.write("keys.json", {"a": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            state.write("keys.json", {"a": 2})
    assert state.read("keys.json") == {"a": 1}
    assert sorted(os.listdir(state.root)) == ["bundles", "keys.json"]


def test_only_the_archives_that_are_named_are_kept(tmp_path: Path):
    state = State(tmp_path / "state", lock=False)
    kept, unnamed = "1" * 64, "2" * 64
    for sha256 in (kept, unnamed):
        state.keep_bundle(sha256, b"x")
    state.forget_bundles({kept})
    assert state.bundle_path(kept).exists()
    assert not state.bundle_path(unnamed).exists()
    state.forget_bundle(unnamed)
    state.bundle_path(unnamed).mkdir()
    assert state.kept_bundle(unnamed) is None, "a folder in its place is no bundle"


KEYS: list[Any] = [
    {},
    {"org_id": ORG, "version": 1},
    {"org_id": ORG, "version": "x", "keys": []},
    {"org_id": ORG, "version": 1, "keys": [{}]},
    {"org_id": ORG, "version": 1, "keys": [{"kid": "k", "public": "zz", "status": "active"}]},
    {"org_id": ORG, "version": 1, "keys": 5},
    [],
    5,
]


@pytest.mark.parametrize("value", KEYS)
def test_a_damaged_key_set_stops_the_agent_rather_than_have_it_trust_anew(tmp_path: Path, value: Any):
    state = State(tmp_path / "state", lock=False)
    assert state.keys() is None
    state.write("keys.json", value)
    with pytest.raises(StateError, match="damaged"):
        state.keys()


def test_to_look_at_a_folder_makes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for command in ("status", "incident", "self-check", "rotate-key"):
        assert main([command, "--state-dir", str(tmp_path / "typo")]) == 2
    assert not (tmp_path / "typo").exists()
    assert "can't be used" in capsys.readouterr().err


def test_status_of_a_folder_with_damaged_files_shows_what_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = State(tmp_path / "state", lock=False)
    for name in ("outbox.json", "memory.json", "active.json", "health.json"):
        (state.root / name).write_text("{")
    assert main(["status", "--state-dir", str(state.root)]) == 0
    assert json.loads(capsys.readouterr().out)["running"] == "damaged"
    assert sorted(os.listdir(state.root)) == ["active.json", "bundles", "health.json", "memory.json", "outbox.json"]


def test_verify_takes_each_form_in_which_people_have_a_key_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    maker, file = Maker(), tmp_path / "bundle.tar"
    file.write_bytes(maker.bundle("a:drop").archive)
    state = State(tmp_path / "state", lock=False)
    state.trust(KeySet(ORG, 1, (maker.key,)))
    row = {**maker.key.as_dict(), "not_before": "2026-01-01T00:00:00Z", "public_key_pem": "..."}
    forms: list[Any] = [maker.key_set(), maker.key_set()["envelopes"], {"results": [row], "next": None}]
    paths = [state.root / "keys.json"]
    for number, form in enumerate(forms):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(form))
    for path in paths:
        assert main(["verify", str(file), "--keys", str(path)]) == 0, path
        assert json.loads(capsys.readouterr().out)["ok"] is True
    other = Maker().key.as_dict()
    for wrong in (
        {},
        [],
        {"results": []},
        {"keys": [1]},
        {"results": [{**row, "public_key": other["public_key"]}]},
        7,
        "x",
    ):
        paths[-1].write_text(json.dumps(wrong))
        assert main(["verify", str(file), "--keys", str(paths[-1])]) == 1
        assert "holds no keys" in capsys.readouterr().err
