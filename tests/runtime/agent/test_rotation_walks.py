"""Random walks: a writer that numbers its records rotates its file in every way, while the agent is killed, stopped and
hindered. Every record that was written whole comes out, in order, once; again only where a kill fell.

`make soak` walks 200 of them (`BYTEOR_SOAK_WALKS`), and 200 on which it is mostly the egress file that is rotated; the suite
walks a few. A walk is its number: `BYTEOR_SOAK_FIRST=17 BYTEOR_SOAK_WALKS=1` is walk 17 again, as far as two processes can do
the same twice.

The writer keeps to what docs/agent.md asks for: it writes nothing between the two halves of a copytruncate and leaves no
line half written there; it empties a file under a running agent, or switches a link away from it, only when the agent has seen
how that file begins, and removes a file only when it was read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.lines import log_text
from tests.runtime.agent.waiting import until

REPOSITORY = Path(__file__).parents[3]
WALKS = int(os.environ.get("BYTEOR_SOAK_WALKS", "3"))
FIRST = int(os.environ.get("BYTEOR_SOAK_FIRST", "0"))
STEPS = 40

pytestmark = pytest.mark.alone


class Walk:
    """One walk. Even ones kill the agent, odd ones stop it in good order; every third has a link as its ingress."""

    def __init__(self, home: Path, number: int) -> None:
        self.dice = random.Random(number)
        self.kills, self.linked = number % 2 == 0, number % 3 == 2
        self.data, self.state, self.log = home / "data", home / "state", home / "log"
        (self.data / "folder").mkdir(parents=True)
        (self.data / "wall").touch()
        self.lead("gate", "folder")
        self.path = self.data / "in.jsonl"
        self.written = 0
        self.half = b""
        self.rotations = 0
        self.rotated_out: list[Path] = []
        self.torn: set[Path] = set()
        self.killed = 0
        self.steps: list[str] = []
        self.agent: subprocess.Popen[bytes] | None = None
        self.blocked = self.full = False
        if self.linked:
            (self.data / "day0").touch()
            self.path.symlink_to("day0")
        self.writer: BinaryIO = self.opened()
        self.start()
        until(self.seen)

    # --- the agent ---

    def start(self) -> None:
        if self.agent is None:
            seen = log_text(self.log).count("started")
            command = [sys.executable, "-m", "tests.runtime.agent.walked", str(self.data), str(self.state)]
            with self.log.open("ab") as log:
                self.agent = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)
            until(lambda: log_text(self.log).count("started") > seen or self.ended(), 60)
            self.limit()

    def ended(self) -> bool:
        return self.agent is not None and self.agent.poll() is not None

    def stop(self) -> None:
        if self.agent is not None:
            # on a full disk the position can't be kept: that is as a kill
            self.killed += self.kills or self.full
            self.agent.send_signal(signal.SIGKILL if self.kills else signal.SIGTERM)
            self.agent.wait(60)
            self.agent = None

    def limit(self) -> None:
        """No file may grow, as on a full disk; or it may again."""
        if self.agent is not None:
            most = 1 if self.full else resource.RLIM_INFINITY
            resource.prlimit(self.agent.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    def restart(self) -> None:
        """Only while the egress is there: a start without it is refused, not waited for."""
        if not self.blocked and not self.full:
            self.start()

    def stop_or_start(self) -> None:
        if self.agent is None:
            self.restart()
        else:
            self.stop()

    def block_or_free(self) -> None:
        if self.blocked or self.agent is not None:
            self.blocked = not self.blocked
            # a file where a folder should be: nothing can be opened in it
            self.lead("gate", "wall" if self.blocked else "folder")

    def lead(self, link: str, to: str) -> None:
        """Have the link lead there from one moment to the next."""
        new = self.data / ".link"
        new.symlink_to(to)
        new.rename(self.data / link)

    def fill_or_free(self) -> None:
        self.full = not self.full
        self.limit()

    # --- the writer ---

    def opened(self) -> BinaryIO:
        return self.path.open("ab", buffering=0)

    def write(self) -> None:
        self.finish()
        for _ in range(self.dice.choice([1, 1, 3, 30])):
            self.writer.write(self.record())

    def record(self) -> bytes:
        padding = "x" * self.dice.choice([0, 5, 100, 2000])
        line = json.dumps({"n": self.written, "x": padding}).encode() + b"\n"
        self.written += 1
        return line

    def write_half(self) -> None:
        self.finish()
        line = self.record()
        cut = self.dice.randrange(1, len(line))
        self.writer.write(line[:cut])
        self.half = line[cut:]

    def finish(self) -> None:
        if self.half:
            self.writer.write(self.half)
            self.half = b""

    def rename_and_create(self) -> None:
        """As logrotate's `create`: the writer goes on in the old file until it reopens."""
        if self.linked:
            self.switch_link()
            return
        self.path.rename(self.rotated())
        if self.dice.random() < 0.5:
            self.path.touch()
            self.rest()
        for _ in range(self.dice.randrange(3)):
            self.write()
            self.rest()
        self.reopen()

    def reopen(self) -> None:
        self.finish()
        self.writer.close()
        self.writer = self.opened()

    def rotated(self) -> Path:
        self.rotations += 1
        return self.data / f"{self.path.resolve().name}.{100_000 + self.rotations}"

    def copy_and_truncate(self) -> None:
        self.finish()
        target = self.path.resolve()
        if target.stat().st_size and (self.seen() or (self.agent is None and not self.linked)):
            shutil.copyfile(target, self.rotated())
            os.truncate(target, 0)

    def switch_link(self) -> None:
        if not self.linked or not self.seen():
            return
        self.rotations += 1
        name = f"day{self.rotations}"
        if self.dice.random() < 0.5:
            (self.data / name).touch()
        self.lead(self.path.name, name)
        self.rest()
        if self.dice.random() < 0.5:
            self.write()
        self.reopen()

    def seen(self) -> bool:
        """Has the agent the file in hand that the path leads to, and kept that it has, and how it begins?"""
        inode, text = self.path.stat().st_ino, self.path.read_bytes()
        for kept in self.state.glob("position-*.json"):
            files = json.loads(kept.read_text())["files"]
            if files and files[-1]["inode"] == inode:
                size, digest = files[-1]["head"]
                # not how it began before it was emptied
                return bool(size or not text) and hashlib.sha256(text[:size]).hexdigest() == digest
        return False

    def delete_and_create(self) -> None:
        """With everything read: what is removed unread can't be. The inode is often the same again."""
        self.finish()
        if self.linked or self.agent is None or self.blocked or self.full:
            return
        self.wait_for_all()
        if self.dice.random() < 0.5:
            self.stop()
        self.writer.close()
        self.path.unlink()
        self.rest()
        self.writer = self.opened()

    # --- what comes out ---

    def rotate_out(self) -> None:
        out = self.data / "gate/out"
        if not self.blocked and out.exists():
            former = self.data / f"kept.{len(self.rotated_out)}"
            if self.dice.random() < 0.5:
                out.rename(former)
            else:  # removed, and looked into afterwards
                former.hardlink_to(out)
                out.unlink()
            self.rotated_out.append(former)
            if self.agent is None and self.kills and not former.read_bytes().endswith(b"\n"):
                # a kill in the middle of a write: only the next start can cut that off, which does not find the file
                self.torn.add(former)
                self.steps.append(f"({former.name} is torn)")

    def out(self) -> list[bytes]:
        lines: list[bytes] = []
        for path in (*self.rotated_out, self.data / "gate/out"):
            if path.exists():
                lines += path.read_bytes().split(b"\n")
                assert lines.pop() == b"" or path in self.torn, f"{path} ends in the middle of a line"
        return lines

    def numbers(self) -> list[int]:
        return [json.loads(line)["n"] for line in self.out()]

    def wait_for_all(self) -> None:
        until(lambda: self.ended() or len(set(self.whole_numbers())) >= self.written, 60)

    def whole_numbers(self) -> list[int]:
        """While it may be written to at this moment."""
        with contextlib.suppress(AssertionError, ValueError):
            return self.numbers()
        return []

    def rest(self) -> None:
        time.sleep(self.dice.choice([0, 0, 0.02, 0.1]))

    def moves(self) -> list[tuple[int, Callable[[], None]]]:
        """What may be next, and how often."""
        return [
            (10, self.write),
            (4, self.write_half),
            (5, self.rename_and_create),
            (3, self.copy_and_truncate),
            (3, self.switch_link),
            (1, self.delete_and_create),
            (3, self.stop_or_start),
            (2, self.restart),
            (2, self.block_or_free),
            (2, self.fill_or_free),
            (2, self.rotate_out),
        ]

    def go(self) -> None:
        moves = self.moves()
        for _ in range(STEPS):
            (move,) = self.dice.choices([move for _, move in moves], [weight for weight, _ in moves])
            self.steps.append(move.__name__)
            move()
            self.rest()
        self.finish()
        if self.full:
            self.fill_or_free()
        if self.blocked:
            self.block_or_free()
        self.start()
        self.wait_for_all()
        self.kills = False
        self.stop()

    def check(self) -> None:
        numbers = self.numbers()
        if self.killed:
            numbers = list(dict.fromkeys(numbers))  # what comes again has come before, in its place
        assert numbers == list(range(self.written))


class EgressWalk(Walk):
    """One on which it is mostly the egress file that is renamed and removed, or made by another."""

    def rotate_out(self) -> None:
        super().rotate_out()
        if not self.blocked and self.dice.random() < 0.3:
            (self.data / "gate/out").touch()

    def moves(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            (10, self.write),
            (3, self.write_half),
            (12, self.rotate_out),
            (2, self.rename_and_create),
            (4, self.stop_or_start),
            (3, self.restart),
            (2, self.block_or_free),
            (3, self.fill_or_free),
        ]


@pytest.mark.parametrize("kind", [Walk, EgressWalk])
@pytest.mark.parametrize("number", range(FIRST, FIRST + WALKS))
def test_what_was_written_whole_comes_out_in_order_and_once_but_for_kills(
    tmp_path: Path, number: int, kind: type[Walk]
) -> None:
    walk = kind(tmp_path, number)
    try:
        walk.go()
        walk.check()
    except BaseException:
        print(f"walk {number}:", *walk.steps)
        print(log_text(walk.log))
        raise
    finally:
        walk.writer.close()
        if walk.agent is not None:
            walk.agent.kill()
            walk.agent.wait()
