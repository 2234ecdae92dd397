"""What a spec says once it has been read: no text, no lines, no errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from apps.runtime.ops.names import Op

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def is_name(text: str) -> bool:
    """Whether `text` can name a pipeline or be a stage id."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a ring; `depends_on` are indexes of earlier stages, increasing."""

    id: str
    op: Op
    depends_on: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SingleRing:
    """A stage DAG over one sequenced ring, defaults filled in."""

    shards: int
    ordering: str
    producer: str
    scheduling: str
    shard_key: str | None
    stages: tuple[Stage, ...]

    target = "SingleRing"

    def canonical_lines(self) -> list[str]:
        """The target's own keys in their one order, defaults written out."""
        lines = [
            f"single_ring.shards={self.shards}",
            f"single_ring.ordering={self.ordering}",
            f"single_ring.producer={self.producer}",
            f"single_ring.scheduling={self.scheduling}",
        ]
        if self.shard_key is not None:
            lines.append(f"single_ring.shard_key={self.shard_key}")
        for index, stage in enumerate(self.stages):
            prefix = f"single_ring.stages.{index}"
            lines += [f"{prefix}.id={stage.id}", f"{prefix}.op={stage.op.text}"]
            lines += [f"{prefix}.depends_on.{at}={number}" for at, number in enumerate(stage.depends_on)]
        return lines

    def capabilities(self) -> tuple[str, ...]:
        """What the ops need, sorted."""
        return tuple(sorted({stage.op.capability for stage in self.stages if stage.op.capability}))


class TargetModel(Protocol):
    """What every target's model offers the compiler."""

    @property
    def target(self) -> str: ...

    def canonical_lines(self) -> list[str]: ...

    def capabilities(self) -> tuple[str, ...]: ...


def canonical_text(name: str, body: TargetModel) -> str:
    """The one text of this meaning: known keys, one order, one trailing newline."""
    head = ["spec.version=1", f"pipeline.name={name}", f"pipeline.target={body.target}"]
    return "\n".join([*head, *body.canonical_lines()]) + "\n"
