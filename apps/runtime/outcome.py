"""What becomes of a record that a plan runs over: the words of the interpreter and of what is behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

MAX_CODES = 64


class Emission(NamedTuple):
    """A record that came out, and the egress lane it came out of (`egress` in a ring)."""

    lane: str
    record: bytes


class Refusal(NamedTuple):
    """Which stage or role refused a record, and why. The message holds no value of the record."""

    stage: str
    code: str
    message: str


@dataclass(slots=True)
class Outcome:
    """What became of one record.

    In a ring exactly one of `emitted` and `refused` is set. In a graph a record may have become several, so that any number
    came out, were refused, or were dropped from full lanes (`dropped`: a lane's name for each). `passed` are the stages, or
    the roles, that forwarded it or a copy of it. `shard` is the shard of a ring that it was in.
    """

    emissions: tuple[Emission, ...]
    refusals: tuple[Refusal, ...]
    passed: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    shard: int = 0

    @property
    def emitted(self) -> bytes | None:
        """The record that came out, the first if there are several, None if there is none."""
        return self.emissions[0].record if self.emissions else None

    @property
    def refused(self) -> Refusal | None:
        """The refusal, the first if there are several, None if there is none."""
        return self.refusals[0] if self.refusals else None


@dataclass(slots=True)
class Tally:
    """What a stage or a role has done: `received` is `forwarded` plus `refused`; `codes` counts the refusals by reason."""

    forwarded: int = 0
    refused: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    def refuse(self, code: str) -> None:
        """Count one refused record."""
        self.refused += 1
        self.codes[code] = self.codes.get(code, 0) + 1

    def as_dict(self) -> StageMetrics:
        """`{received, forwarded, refused, codes}`, at most 64 codes: what is beyond counts as `other`."""
        return {
            "received": self.forwarded + self.refused,
            "forwarded": self.forwarded,
            "refused": self.refused,
            "codes": _bounded(self.codes),
        }


def _bounded(codes: Mapping[str, int]) -> dict[str, int]:
    if len(codes) <= MAX_CODES:
        return dict(codes)
    kept = dict(sorted(codes.items(), key=lambda item: -item[1])[: MAX_CODES - 1])
    return {**kept, "other": kept.get("other", 0) + sum(codes.values()) - sum(kept.values())}


class StageMetrics(TypedDict):
    """Counters of a stage or role, or of what an adapter refused (`lane:NAME`)."""

    received: int
    forwarded: int
    refused: int
    codes: dict[str, int]


class LaneMetrics(TypedDict):
    """Counters of a lane that may drop: `received` counts what was dropped too."""

    received: int
    dropped: int


class Metrics(TypedDict):
    """Counters of a plan at work: by stage or role, by lane that may drop, and for each stage with rules the values that
    each rule was applied to."""

    stages: dict[str, StageMetrics]
    lanes: dict[str, LaneMetrics]
    rules: dict[str, list[int]]


def no_metrics() -> Metrics:
    """Counters of nothing."""
    return {"stages": {}, "lanes": {}, "rules": {}}


def added(one: Metrics, other: Metrics) -> Metrics:
    """The counters of both, as of one plan that was started twice, or of a plan and of what its adapters refused."""
    stages, lanes, rules = dict(one["stages"]), dict(one["lanes"]), dict(one["rules"])
    for name, stage in other["stages"].items():
        former = stages.get(name)
        if former is not None:
            both = Tally(former["forwarded"] + stage["forwarded"], former["refused"] + stage["refused"])
            for code, number in (*former["codes"].items(), *stage["codes"].items()):
                both.codes[code] = both.codes.get(code, 0) + number
            stages[name] = both.as_dict()
        else:
            stages[name] = stage
    for name, lane in other["lanes"].items():
        before = lanes.get(name, {"received": 0, "dropped": 0})
        lanes[name] = {
            "received": before["received"] + lane["received"],
            "dropped": before["dropped"] + lane["dropped"],
        }
    for name, hits in other["rules"].items():
        known = rules.get(name, [])
        rules[name] = [a + b for a, b in zip(known, hits, strict=True)] if len(known) == len(hits) else hits
    return {"stages": stages, "lanes": lanes, "rules": rules}
