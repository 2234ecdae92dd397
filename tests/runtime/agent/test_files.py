"""Files that are rotated, shortened, swapped and removed under a running pipeline: what was written whole comes out once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline import Pipeline
from apps.runtime.agent.pipeline.files import FileSource, Piece
from apps.runtime.agent.pipeline.folder import DataFolder, FileRefused
from apps.runtime.agent.pipeline.rotation import rotated_name
from apps.runtime.agent.pipeline.sinks import FileSink
from apps.runtime.agent.state import State
from apps.runtime.bundle import read_bundle, verify_bundle
from tests.lines import json_lines
from tests.runtime.agent.waiting import until
from tests.runtime.making import Maker, acting

IN = "in.jsonl"
MIB = 1024 * 1024


class Reader:
    """A source without a pipeline: everything that can be taken now is."""

    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.data.mkdir(exist_ok=True)
        self.state = State(home / "state", lock=False)
        self.logged: list[str] = []
        self.source = self.made()

    def made(self, **options: Any) -> FileSource:
        options = {"follow": True, "quiet_seconds": 0.0, "log": self.logged.append, **options}
        return FileSource(DataFolder(self.data.resolve()), IN, self.state, **options)

    def restart(self, **options: Any) -> None:
        self.source.close()
        self.source = self.made(**options)

    def read(self, most: int = 2000) -> list[str]:
        """What is new now; a refused line as its code."""
        found: list[str] = []
        nothing = 0
        while nothing < 8:  # a line of many MiB is passed over in several steps
            batch = self.source.take(most)
            nothing = 0 if batch else nothing + 1
            found += [item.code if isinstance(item, Piece) else item.decode() for item in batch if item]
            self.source.commit(len(batch))
        return found

    def append(self, *lines: str, name: str = IN) -> None:
        with (self.data / name).open("a") as out:
            out.writelines(line + "\n" for line in lines)

    def rename(self, to: str, name: str = IN) -> None:
        (self.data / name).rename(self.data / to)

    def same_moment(self, one: str, other: str) -> None:
        """As if the other had been written to within the same tick of the clock: a few ms on many file systems."""
        at = (self.data / one).stat().st_mtime_ns
        os.utime(self.data / other, ns=(at, at))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    made.source.close()


def test_a_writer_that_goes_on_in_the_renamed_file_loses_nothing_and_the_order_is_its_own(reader: Reader) -> None:
    reader.restart(quiet_seconds=60.0)
    reader.append("a")
    assert reader.read() == ["a"]
    with (reader.data / IN).open("a") as writer:
        reader.rename("in.jsonl.1")
        (reader.data / IN).touch()
        assert reader.read() == []
        writer.write("between\n")
        writer.flush()
        reader.append("after")
        assert reader.read() == ["between", "after"]


def test_a_line_that_is_finished_after_the_rename_comes_out_whole(reader: Reader) -> None:
    reader.restart(quiet_seconds=60.0)
    with (reader.data / IN).open("a") as writer:
        writer.write('{"half":')
        writer.flush()
        assert reader.read() == []
        reader.rename("in.jsonl.1")
        reader.append("new")
        assert reader.read() == ["new"]
        writer.write("2}\n")
        writer.flush()
        assert reader.read() == ['{"half":2}']


def test_an_unfinished_line_is_refused_not_sent(reader: Reader) -> None:
    (reader.data / IN).write_text('whole\n{"half":')
    assert reader.read() == ["whole"]
    reader.rename("in.jsonl.1")
    reader.append("new")
    assert reader.read() == ["record_unfinished", "new"]
    assert reader.read() == []


def test_what_was_written_before_a_rotation_while_the_agent_was_stopped_is_read_first(reader: Reader) -> None:
    reader.append("1", "2")
    assert reader.read() == ["1", "2"]
    reader.source.close()
    reader.append("while down")
    reader.rename("in.jsonl.7")
    reader.append("new")
    reader.restart()
    assert reader.read() == ["while down", "new"]
    reader.restart()
    assert reader.read() == []


def test_several_rotations_while_the_agent_was_stopped_are_read_in_their_order(reader: Reader) -> None:
    reader.append("old", name="in.jsonl.9")  # from before the agent: not its to read
    reader.append("1")
    assert reader.read() == ["1"]
    reader.source.close()
    reader.append("2")
    reader.rename("in.jsonl.3")
    reader.append("3")
    reader.rename("in.jsonl.2")
    reader.append("4")
    reader.rename("in.jsonl.1")
    reader.append("5")
    reader.restart()
    assert reader.read() == ["2", "3", "4", "5"]


def test_several_rotations_while_nothing_could_be_taken_are_read_in_their_order(reader: Reader) -> None:
    reader.append("1")
    assert len(reader.source.take(10)) == 1  # and the egress hangs
    reader.rename("in.jsonl-20260101")
    reader.append("2")
    reader.rename("in.jsonl-20260102")
    reader.append("3")
    reader.source.commit(1)
    assert reader.read() == ["2", "3"]


def test_a_file_that_was_seen_is_read_though_it_is_removed_before_its_turn(reader: Reader) -> None:
    reader.append("1")
    assert len(reader.source.take(10)) == 1
    reader.rename("in.jsonl.1")
    reader.append("2")
    reader.source.look()
    (reader.data / IN).unlink()
    reader.append("3")
    reader.source.commit(1)
    assert reader.read() == ["2", "3"]


def test_a_file_that_was_shortened_and_has_grown_past_the_old_position_is_read_from_its_start(reader: Reader) -> None:
    for running in (True, False):
        reader.append(*(f"a{running}{n:04}" for n in range(10)))
        assert len(reader.read()) == 10
        if not running:
            reader.source.close()
        new = [f"b{running}{n:04}" for n in range(30)]
        (reader.data / IN).write_text("".join(line + "\n" for line in new))  # the same inode
        if not running:
            reader.restart()
        assert reader.read() == new


def test_what_was_unread_when_a_file_was_copied_and_emptied_is_read_from_the_copy(reader: Reader) -> None:
    for running in (True, False):
        reader.append("1", "2")
        assert reader.read() == ["1", "2"]
        if not running:
            reader.source.close()
        reader.append("3", "4")
        shutil.copy(reader.data / IN, reader.data / "in.jsonl.1")
        os.truncate(reader.data / IN, 0)
        reader.append("5")
        if not running:
            reader.restart()
        assert reader.read() == ["3", "4", "5"]


def test_a_copy_of_a_file_that_goes_on_is_not_read_again(reader: Reader) -> None:
    reader.append("1", "2")
    assert reader.read() == ["1", "2"]
    shutil.copy(reader.data / IN, reader.data / "in.jsonl.1")
    reader.restart()
    reader.append("3")
    assert reader.read() == ["3"]
    reader.rename("in.jsonl.2")
    reader.append("4")
    assert reader.read() == ["4"]


def test_a_file_of_the_same_inode_with_other_content_is_another_file(reader: Reader) -> None:
    reader.append("aaaa", "bbbb")
    assert len(reader.read()) == 2
    inode = (reader.data / IN).stat().st_ino
    reader.source.close()
    handle = os.open(reader.data / IN, os.O_RDWR)  # as if it were removed and its inode used again
    os.ftruncate(handle, 0)
    os.write(handle, b"cccc\ndddd\neeee\n")
    os.close(handle)
    assert (reader.data / IN).stat().st_ino == inode
    reader.restart()
    assert reader.read() == ["cccc", "dddd", "eeee"]


def test_a_link_that_is_switched_is_followed_and_back_again(reader: Reader) -> None:
    link = reader.data / IN
    for name in ("day1", "day2"):
        (reader.data / name).write_text(f"{name} a\n")
    link.symlink_to("day1")
    assert reader.read() == ["day1 a"]
    reader.append("day1 b", name="day1")
    link.unlink()
    link.symlink_to(reader.data / "day2")
    assert reader.read() == ["day1 b", "day2 a"]
    reader.restart()
    link.unlink()
    link.symlink_to("./day1")
    reader.append("day1 c", name="day1")
    assert reader.read() == ["day1 c"]


def test_a_new_file_with_the_inode_of_an_empty_one_hides_no_rotation_before_it(reader: Reader) -> None:
    reader.restart(quiet_seconds=60.0)
    (reader.data / IN).touch()
    inode = (reader.data / IN).stat().st_ino
    assert reader.read() == []
    reader.rename("empty")
    reader.append("1")
    assert reader.read() == ["1"]
    reader.source.close()
    reader.rename("in.jsonl.2")
    reader.append("2")
    reader.rename("in.jsonl.1")
    reader.rename(IN, "empty")  # as if that inode were given to the new file
    reader.append("3")
    assert (reader.data / IN).stat().st_ino == inode
    reader.restart()
    assert reader.read() == ["2", "3"]


def test_files_that_were_rotated_within_one_tick_of_the_clock_are_read_in_their_order(reader: Reader) -> None:
    (reader.data / IN).touch()
    assert reader.read() == []
    reader.append("1")
    reader.rename("in.jsonl.2")
    (reader.data / IN).touch()
    reader.same_moment("in.jsonl.2", IN)
    reader.rename("in.jsonl.1")
    (reader.data / IN).touch()
    reader.source.look()
    reader.append("2", name="in.jsonl.1")
    assert reader.read() == ["1", "2"]


@pytest.mark.parametrize("late", [True, False])
def test_a_file_that_came_and_went_within_one_tick_of_the_one_before_it_is_read(reader: Reader, late: bool) -> None:
    (reader.data / IN).touch()
    assert reader.read() == []
    reader.rename("in.jsonl.2")
    reader.append(*([] if late else ["1"]))
    reader.same_moment("in.jsonl.2", IN)
    reader.rename("in.jsonl.1")
    (reader.data / IN).touch()
    found = reader.read()
    reader.append(*(["1"] if late else []), name="in.jsonl.1")
    reader.append("2")
    assert [*found, *reader.read()] == ["1", "2"]


def test_what_was_rotated_before_the_first_file_is_not_read_though_it_was_in_the_same_moment(reader: Reader) -> None:
    reader.append("old")
    reader.rename("in.jsonl.2")
    reader.append("1")
    reader.same_moment(IN, "in.jsonl.2")
    assert reader.read() == ["1"]
    reader.rename("in.jsonl.1")
    reader.append("2")
    assert reader.read() == ["2"]


@pytest.mark.parametrize("first", ['{"n": 1', '{"header": true}\n'])
def test_files_that_begin_in_the_same_way_are_not_taken_for_copies(reader: Reader, first: str) -> None:
    """What was seen of the first one, before a restart, was no more than the others begin with, too."""
    (reader.data / IN).write_text(first)
    reader.source.look()  # the egress hangs
    reader.source.close()
    reader.append("1}")
    reader.rename("in.jsonl.2")
    for number in (2, 3):
        (reader.data / IN).write_text(f"{first}{number}}}\n")
        if number == 2:
            reader.rename("in.jsonl.1")
    reader.restart()
    lines = [line for number in (1, 2, 3) for line in f"{first}{number}}}".split("\n")]
    assert reader.read() == lines


def test_half_a_line_that_another_file_begins_with_too_is_no_copy_of_it(reader: Reader) -> None:
    reader.restart(quiet_seconds=60.0)
    reader.append('{"n": 15}')
    assert reader.read() == ['{"n": 15}']
    reader.rename("in.jsonl.2")
    (reader.data / "in.jsonl.1").write_text('{"n": 1')
    (reader.data / IN).touch()
    assert reader.read() == []
    reader.append("6}", name="in.jsonl.1")
    reader.append('{"n": 17}')
    assert reader.read() == ['{"n": 16}', '{"n": 17}']


def test_more_is_kept_of_how_a_file_begins_while_it_waits(reader: Reader) -> None:
    reader.append("1")
    assert reader.source.take(1)  # and the egress hangs
    reader.rename("in.jsonl.2")
    reader.append("header")
    reader.source.look()
    reader.append("2")
    reader.source.look()
    (path,) = reader.state.root.glob("position-*.json")
    assert json.loads(path.read_text())["files"][-1]["head"][0] == len("header\n2\n")


def test_an_empty_file_is_ordered_by_its_name_for_the_writer_may_yet_go_over_to_it(reader: Reader) -> None:
    reader.append("1")
    assert reader.read() == ["1"]
    reader.source.close()
    reader.rename("in.jsonl.3")
    (reader.data / "in.jsonl.1").touch()  # made before the writer was done with the one before it
    reader.append("2", name="in.jsonl.2")
    os.utime(reader.data / "in.jsonl.2", ns=(0, (reader.data / "in.jsonl.1").stat().st_mtime_ns + 1_000_000_000))
    (reader.data / IN).touch()
    reader.restart()
    reader.source.look()
    reader.append("3", name="in.jsonl.1")
    reader.append("4")
    assert reader.read() == ["2", "3", "4"]


def test_a_file_with_the_inode_of_one_that_was_read_and_removed_is_another(reader: Reader) -> None:
    (reader.data / IN).touch()
    assert reader.read() == []
    reader.rename("empty")
    reader.append("1")
    assert reader.read() == ["1"]
    reader.rename("in.jsonl.2")
    reader.append("2", name="empty")
    reader.rename("in.jsonl.1", "empty")  # as if that inode were given to the new file
    reader.append("3")
    assert reader.read() == ["2", "3"]


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize("copies", [1, 2])
def test_what_was_emptied_then_renamed_while_the_egress_was_away_is_read_in_its_order(
    reader: Reader, copies: int, stopped: bool
) -> None:
    reader.append("1")
    reader.source.look()  # the egress hangs
    for number in range(1, copies + 1):
        shutil.copy(reader.data / IN, reader.data / f"in.jsonl-2026010{number}")
        (reader.data / IN).write_text(f"{number + 1}\n")
    reader.rename("in.jsonl-20260105")
    reader.append("last")
    later = (reader.data / IN).stat().st_mtime_ns + 1_000_000_000
    os.utime(reader.data / IN, ns=(later, later))
    reader.source.look()
    if stopped:
        reader.restart()
    assert reader.read() == [*map(str, range(1, copies + 2)), "last"]


def test_a_later_file_with_the_inode_of_one_that_was_removed_is_read_in_its_own_turn(reader: Reader) -> None:
    reader.restart(quiet_seconds=60.0)
    reader.append("1")
    assert reader.read() == ["1"]
    reader.rename("gone")
    reader.append("2")
    assert reader.read() == ["2"]
    reader.source.close()
    reader.append("3")
    reader.rename("in.jsonl.2")
    (reader.data / "gone").write_text("4\n")
    reader.rename("in.jsonl.1", "gone")  # as if that inode were given to the new file
    reader.append("5")
    reader.restart()
    assert reader.read() == ["3", "4", "5"]


def test_what_a_link_led_to_and_was_emptied_before_a_kill_is_read_on(reader: Reader) -> None:
    link = reader.data / IN
    (reader.data / "day1").write_text("1\n2\n")
    link.symlink_to("day1")
    assert len(reader.source.take(1)) == 1  # and the egress hangs
    reader.source.commit(1)
    shutil.copy(reader.data / "day1", reader.data / "day1.1")
    (reader.data / "day1").write_text("3\n")
    (reader.data / "day2").write_text("4\n")
    link.unlink()
    link.symlink_to("day2")
    reader.source.look()
    reader.restart()
    assert reader.read() == ["2", "3", "4"]


@pytest.mark.parametrize("way", ["file", "folder", "up"])
def test_a_link_that_leads_out_of_the_data_folder_is_never_followed(reader: Reader, tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / IN).write_text("secret\n")
    (reader.data / "sub").mkdir()
    folder = DataFolder(reader.data.resolve())
    path = f"sub/{IN}"
    (reader.data / path).write_text("mine\n")
    assert folder.open_to_read(path).read(9, 0) == b"mine\n"
    shutil.rmtree(reader.data / "sub")
    if way == "folder":
        (reader.data / "sub").symlink_to(outside)
    else:
        (reader.data / "sub").mkdir()
        (reader.data / path).symlink_to(outside / IN if way == "file" else f"../../outside/{IN}")
    for act in (folder.open_to_read, folder.open_to_append):
        with pytest.raises(FileRefused, match="path_not_allowed"):
            act(path)
    assert (outside / IN).read_text() == "secret\n"


def test_a_long_line_is_refused_alone_in_bounded_memory_and_what_follows_comes_out(reader: Reader) -> None:
    with (reader.data / IN).open("w") as out:
        out.write("1\n")
        out.write("A" * (4 * MIB) + "\n")  # as long as may be
        out.write("B" * (4 * MIB + 1) + "\n")
        for _ in range(40):
            out.write("C" * MIB)
        out.write("\n2\n")
    tracemalloc.start()
    found = reader.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [item if len(item) < 100 else len(item) for item in found] == [
        "1",
        4 * MIB,
        "record_too_large",
        "record_too_large",
        "2",
    ]
    assert peak < 48 * MIB
    assert reader.read() == []


def test_a_long_line_that_grows_in_pieces_and_over_a_restart_counts_once(reader: Reader) -> None:
    with (reader.data / IN).open("w") as out:
        for _ in range(5):
            out.write("C" * MIB)
            out.flush()
            assert reader.read() == []
        reader.restart()
        assert reader.read() == []
        out.write("\nnext\n")
    assert reader.read() == ["record_too_large", "next"]


def test_a_batch_is_weighed_and_what_was_read_is_not_read_again(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (reader.data / IN).open("w") as out:
        for n in range(64):
            out.write(f"{n:02}" + "x" * MIB + "\n")
    taken = reader.source.take(2000)
    assert 7 <= len(taken) <= 9
    read: list[int] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: (read.append(given[1]), real(*given))[1])
    reader.source.commit(2)
    assert reader.source.take(2000)[0] == taken[2]
    assert sum(read) < MIB


def test_line_ends_and_byte_order_marks_are_no_part_of_a_record_and_nothing_else_is_taken_away(reader: Reader) -> None:
    (reader.data / IN).write_bytes(b'\xef\xbb\xbf{"a":1}\r\n{"b":2}\n\r\n\n\xef\xbb\xbfc\r\r\n')
    assert reader.read() == ['{"a":1}', '{"b":2}', "\ufeffc\r"]


def test_a_file_that_is_not_followed_is_read_when_it_appears_and_once(reader: Reader) -> None:
    reader.restart(follow=False)
    assert reader.read() == []
    assert not reader.source.finished()
    (reader.data / IN).write_text("1\n2")
    assert reader.read() == ["1", "2"]
    assert reader.source.finished()


def test_damaged_positions_cost_a_repetition_not_the_pipeline(reader: Reader) -> None:
    reader.append("1")
    assert reader.read() == ["1"]
    (path,) = reader.state.root.glob("position-*.json")
    for damage in (b"", b"{}", b"[]", b'{"files": [{}], "finished": []}', path.read_bytes()[:-20]):
        reader.source.close()
        path.write_bytes(damage)
        reader.restart()
        assert reader.read() == ["1"]


def test_a_position_as_earlier_versions_kept_it_is_understood(reader: Reader) -> None:
    reader.append("1", "2")
    reader.read()
    (path,) = reader.state.root.glob("position-*.json")
    kept = json.loads(path.read_text())
    assert kept["path"] == str(reader.data / IN)
    reader.source.close()
    path.write_text(json.dumps({"path": kept["path"], "inode": kept["inode"], "position": 2}))
    reader.restart()
    assert reader.read() == ["2"]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("in.jsonl.1", True),
        ("in.jsonl-20260131", True),
        ("in.jsonl.2026-01-31T10", True),
        ("in-20260131.jsonl", True),
        ("in.jsonl.1.gz", False),
        ("in.jsonl.bak", False),
        ("in.jsonl", False),
        ("other.jsonl.1", False),
    ],
)
def test_rotated_files_are_known_by_name(name: str, known: bool) -> None:
    assert (rotated_name(name, IN) is not None) is known


# --- what is written ---


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Callable[[], FileSink]]:
    data = tmp_path / "data"
    data.mkdir()
    state, made = State(tmp_path / "state", lock=False), []

    def make() -> FileSink:
        sink = FileSink(DataFolder(data.resolve()), "out/o.jsonl", state)
        sink.open()
        made.append(sink)
        return sink

    yield make
    for one in made:
        one.close()


def _out(tmp_path: Path, name: str = "o.jsonl") -> Path:
    return tmp_path / "data/out" / name


def _write(sink: FileSink, *records: bytes) -> None:
    for record in records:
        sink.put(record)
    sink.flush()


def test_an_egress_file_that_is_renamed_or_removed_is_left_and_a_new_one_made(
    tmp_path: Path, sink: Callable[[], FileSink]
) -> None:
    one = sink()
    _write(one, b"1")
    _out(tmp_path).rename(_out(tmp_path, "o.1"))
    _write(one, b"2")
    _out(tmp_path).unlink()
    _write(one, b"3")
    shutil.rmtree(tmp_path / "data/out")
    _write(one, b"4")
    assert _out(tmp_path).read_bytes() == b"4\n"


def test_a_new_egress_file_is_synced_with_its_folders_before_a_record_counts_as_written(
    tmp_path: Path, sink: Callable[[], FileSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))[1]
    )
    folder = _out(tmp_path).parent
    one = sink()
    _write(one, b"1")
    assert [path for path in synced if path.startswith(str(folder.parent))] == [str(folder.parent), str(folder)]
    synced.clear()
    _out(tmp_path).unlink()
    _write(one, b"2")
    assert str(folder) in synced


def test_a_record_that_went_into_a_file_removed_that_moment_is_written_again(
    tmp_path: Path, sink: Callable[[], FileSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sink()
    real = os.fdatasync

    def removed(handle: int) -> None:
        monkeypatch.setattr(os, "fdatasync", real)
        _out(tmp_path).unlink()

    monkeypatch.setattr(os, "fdatasync", removed)
    _write(one, b"1")
    assert _out(tmp_path).read_bytes() == b"1\n"


@pytest.mark.parametrize("text", [b'{"whole": "document"}', b"a\nb", b"x" * 3000])
def test_another_ones_last_line_is_kept(tmp_path: Path, sink: Callable[[], FileSink], text: bytes) -> None:
    _out(tmp_path).parent.mkdir()
    _out(tmp_path).write_bytes(text)
    one = sink()
    _write(one, b"1")
    assert _out(tmp_path).read_bytes() == text + b"\n1\n"
    one.close()
    with _out(tmp_path).open("ab") as other:
        other.write(b"theirs")
    _write(sink(), b"2")
    assert _out(tmp_path).read_bytes() == text + b"\n1\ntheirs\n2\n"


@pytest.mark.parametrize("closed", [False, True])
def test_a_write_that_failed_half_way_and_could_not_be_undone_leaves_no_torn_line(
    tmp_path: Path, sink: Callable[[], FileSink], monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    def half(handle: int, data: bytes) -> int:
        real(handle, bytes(data)[: len(data) // 2])
        raise OSError(errno.EIO, "Input/output error")

    def fails(*given: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    one, real = sink(), os.write
    one.put(b'{"first": 1}')
    one.flush()
    one.put(b'{"second": 2}')
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", fails)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                one.flush()
    if closed:
        one.close()
        one = sink()
        one.put(b'{"second": 2}')
    one.flush()
    one.close()
    assert _out(tmp_path).read_bytes() == b'{"first": 1}\n{"second": 2}\n'


def test_a_torn_line_of_its_own_is_taken_away_after_a_kill(tmp_path: Path, sink: Callable[[], FileSink]) -> None:
    one = sink()
    _write(one, b"1")
    with _out(tmp_path).open("ab") as torn:  # `one` is not closed: it was killed in the middle of a line
        torn.write(b'{"to' + b"x" * 3 * MIB)
    _write(sink(), b"2")
    assert _out(tmp_path).read_bytes() == b"1\n2\n"


# --- the pipeline ---


class Flow:
    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.data.mkdir()
        self.state, self.maker = State(home / "state", lock=False), Maker()
        self.pipelines: list[Pipeline] = []

    def start(self, *ops: str, ingress: str = IN, follow: bool = True) -> Pipeline:
        adapters = {
            "ingress": {"type": "file", "path": ingress, "follow": follow},
            "egress": {"type": "file", "path": "out"},
        }
        config: dict[str, Any] = {"adapters": adapters, "environment": {}}
        if "dataguard_check" in ops:
            config["stages"] = {"s0": {"schema": {"required": ["n"]}}}
        made = self.maker.bundle(spec=acting(*(ops or ("identity",))), config=config)
        bundle = verify_bundle(read_bundle(made.archive), keys=self.maker.keys)
        pipeline = Pipeline(bundle, Limits.given(self.data), self.state, lambda text: None)
        self.pipelines.append(pipeline)
        pipeline.start()
        return pipeline

    def out(self) -> list[bytes]:
        path = self.data / "out"
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []

    def refused(self) -> list[dict[str, Any]]:
        return json_lines(self.state.root / "refused.jsonl")


@pytest.fixture
def flow(tmp_path: Path) -> Iterator[Flow]:
    made = Flow(tmp_path)
    yield made
    for pipeline in made.pipelines:
        pipeline.stop()


def test_what_is_refused_is_counted_by_code_and_kept_on_the_host_and_the_pipeline_stays_well(flow: Flow) -> None:
    with (flow.data / IN).open("wb") as out:
        out.write(b'{"n":1}\n{"n":\xff}\n{"m":1}\n' + b'{"n":"' + b"A" * 5 * MIB + b'"}\n{"n":2}\n')
    pipeline = flow.start("dataguard_check")
    until(lambda: flow.out() == [b'{"n":1}', b'{"n":2}'])
    assert pipeline.healthy()
    pipeline.stop()
    stages = pipeline.metrics()["stages"]
    assert stages["lane:ingress"]["codes"] == {"record_too_large": 1}
    assert stages["s0"]["refused"] == 2
    kept = flow.refused()
    assert [(line["stage"], line["truncated"]) for line in kept] == [
        ("s0", False),
        ("s0", False),
        ("lane:ingress", True),
    ]
    assert kept[1]["record"] == '{"m":1}'
    assert kept[0]["record_base64"]
    assert kept[2]["bytes"] == 5 * MIB + 9
    assert (flow.state.root / "refused.jsonl").stat().st_mode & 0o777 == 0o600


def test_what_is_kept_of_refused_records_is_bounded(flow: Flow) -> None:
    with (flow.data / IN).open("wb") as out:
        for n in range(400):
            out.write(b'{"m": %d, "x": "%s"}\n' % (n, b"y" * 60_000))
        out.write(b'{"n":1}\n')
    pipeline = flow.start("dataguard_check")
    until(lambda: flow.out() == [b'{"n":1}'], 60)
    pipeline.stop()
    sizes = [path.stat().st_size for path in flow.state.root.glob("refused.jsonl*")]
    assert len(sizes) == 2
    assert sum(sizes) < 9 * MIB
    assert json.loads(flow.refused()[-1]["record"])["m"] == 399


@pytest.mark.parametrize("what", ["fifo", "folder", "device"])
def test_what_is_no_regular_file_is_refused_by_name(flow: Flow, what: str) -> None:
    for name in (IN, "out"):
        path = flow.data / name
        if what == "fifo":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        else:
            try:
                os.mknod(path, 0o20600, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("a device can't be made here")
        with pytest.raises(ActivationError, match="not_a_regular_file"):
            flow.start()
        shutil.rmtree(path) if what == "folder" else path.unlink()


@pytest.mark.parametrize("hard", [True, False])
def test_the_file_that_it_writes_is_never_read_under_another_name(flow: Flow, hard: bool) -> None:
    (flow.data / "out").write_text("1\n")
    link = flow.data / IN
    link.hardlink_to(flow.data / "out") if hard else link.symlink_to("out")
    with pytest.raises(ActivationError, match="path_not_allowed"):
        flow.start()
    link.unlink()
    link.write_text("1\n2\n")
    pipeline = flow.start()
    until(lambda: len(flow.out()) == 3)
    link.unlink()
    link.hardlink_to(flow.data / "out") if hard else link.symlink_to("out")
    until(lambda: "path_not_allowed" in pipeline.problem())
    assert len(flow.out()) == 3


def test_a_fifo_in_place_of_the_file_is_reported_and_the_file_that_was_there_is_read_to_its_end(flow: Flow) -> None:
    (flow.data / IN).write_text("1\n")
    pipeline = flow.start()
    until(lambda: flow.out() == [b"1"])
    with (flow.data / IN).open("a") as writer:
        (flow.data / IN).rename(flow.data / "in.jsonl.1")
        os.mkfifo(flow.data / IN)
        until(lambda: "not_a_regular_file" in pipeline.problem())
        writer.write("2\n")
        writer.flush()
        until(lambda: flow.out() == [b"1", b"2"])
    (flow.data / IN).unlink()
    (flow.data / IN).write_text("3\n")
    until(lambda: flow.out() == [b"1", b"2", b"3"])
    until(pipeline.healthy)


@pytest.mark.parametrize("what", ["state", "data"])
def test_a_rotation_while_the_disk_is_full_loses_nothing(tmp_path: Path, what: str) -> None:
    small = tmp_path / what
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("disk full: a small file system can't be mounted here")
    flow: Flow | None = None
    try:
        flow = Flow.__new__(Flow)
        flow.data = tmp_path / "data"
        flow.data.mkdir(exist_ok=True)
        flow.state, flow.maker, flow.pipelines = State(tmp_path / "state", lock=False), Maker(), []
        source = flow.data / IN
        source.write_text("".join(f"old-{n}\n" for n in range(5)))
        pipeline = flow.start()
        until(lambda: len(flow.out()) == 5)
        filler = small / "filler"
        source.rename(flow.data / "in.jsonl.1")
        source.write_text("".join(f"new-{n}-{'x' * 100}\n" for n in range(10)))
        with filler.open("wb", buffering=0) as full:
            for size in (4096, 1):
                try:
                    while True:
                        full.write(b"\0" * size)
                except OSError:
                    continue
        with source.open("a") as more, contextlib.suppress(OSError):
            more.write("last-1\n")
        until(lambda: "disk_full" in pipeline.problem() or len(flow.out()) >= 15, 20)
        filler.unlink()
        until(lambda: len(flow.out()) >= 15, 20)
        assert [line[:5] for line in flow.out()[:15]] == [
            *(f"old-{n}".encode() for n in range(5)),
            *(f"new-{n}".encode() for n in range(10)),
        ]
    finally:
        for pipeline in flow.pipelines if flow else []:
            pipeline.stop()
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_position_that_can_be_kept_again_is_kept_by_the_stop_and_nothing_comes_twice(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pipeline = flow.start()
    with monkeypatch.context() as patch:
        patch.setattr(flow.state, "write", full)
        (flow.data / IN).write_text("1\n")
        until(lambda: flow.out() == [b"1"] and "disk_full" in pipeline.problem())
    pipeline.stop()  # in the pause before the next try
    with (flow.data / IN).open("a") as more:
        more.write("2\n")
    flow.start()
    until(lambda: b"2" in flow.out())
    assert flow.out() == [b"1", b"2"]


@settings(max_examples=int(os.environ.get("BYTEOR_SOAK_EXAMPLES", "60")), deadline=None)
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(lambda n: b'{"n":%d}' % n, st.integers(0, 99)),
            st.builds(lambda text: json.dumps({"n": text}).encode(), st.text(max_size=20)),
        ).map(lambda line: line.replace(b"\n", b" ")),
        max_size=12,
    ),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=12, max_size=12),
)
def test_any_line_comes_out_whole_or_is_counted_with_its_code(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: list[bytes]
) -> None:
    flow = Flow(tmp_path_factory.mktemp("any"))
    (flow.data / IN).write_bytes(b"".join(line + end for line, end in zip(lines, ends, strict=False)))
    pipeline = flow.start("dataguard_check", follow=False)
    try:
        until(lambda: not any(thread.is_alive() for thread in pipeline._threads))
    finally:
        pipeline.stop()
    assert pipeline.error is None
    tally = pipeline.metrics()["stages"]["s0"]
    out = flow.out()
    # what a record is: the line without its end; the mark before the first; nothing is none
    records = [(line + end)[:-1].removesuffix(b"\r") for line, end in zip(lines, ends, strict=False)]
    records = [record.removeprefix(b"\xef\xbb\xbf") if n == 0 else record for n, record in enumerate(records)]
    records = [record for record in records if record]
    passed = [record for record in records if record in out]
    assert passed == out
    assert all(b"n" in json.loads(line.decode()) or "n" in json.loads(line.decode()) for line in out)
    assert (tally["received"], tally["refused"]) == (len(records), len(records) - len(out))
    assert sum(tally["codes"].values()) == tally["refused"] == len(flow.refused())
