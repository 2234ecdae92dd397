"""Parses the counters of a heartbeat for display.

A host may send anything: parts that do not have the form of docs/agent.md are omitted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageCounters:
    """Records of a stage or role, or those that the adapter of a lane refused (`lane:NAME`). `codes` has the reasons."""

    stage: str
    received: int
    forwarded: int
    refused: int
    codes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """How many values a rule was applied to since the agent started or switched to this bundle."""

    stage: str
    rule: str
    hits: int


def _member(value: object, name: str) -> Mapping[str, object]:
    member = value.get(name) if isinstance(value, Mapping) else None
    return member if isinstance(member, Mapping) else {}


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def stages_of(metrics: object) -> Iterator[StageCounters]:
    """Return the stage counters in `metrics`."""
    for name, counted in _member(metrics, "stages").items():
        if isinstance(counted, Mapping):
            codes = {code: _count(number) for code, number in _member(counted, "codes").items()}
            received, forwarded, refused = (_count(counted.get(key)) for key in ("received", "forwarded", "refused"))
            yield StageCounters(name, received, forwarded, refused, codes)


def lanes_of(metrics: object) -> Iterator[tuple[str, int, int]]:
    """Return (lane, received, dropped) of the lanes that may drop."""
    for name, counted in _member(metrics, "lanes").items():
        if isinstance(counted, Mapping):
            yield name, _count(counted.get("received")), _count(counted.get("dropped"))


def matches_of(metrics: object, rules: Mapping[str, Sequence[str]]) -> Iterator[RuleMatch]:
    """Return the matches of each of `rules` (stage: rules). A stage with missing or too few counters is omitted."""
    for stage, hits in _member(metrics, "rules").items():
        texts = rules.get(stage, ())
        if isinstance(hits, list) and len(hits) == len(texts):
            for text, number in zip(texts, hits, strict=True):
                yield RuleMatch(stage, text, _count(number))


def describe_counts(value: object) -> str:
    """Format a part of a tuning report on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()) or "nothing"
    if isinstance(value, list):
        return "; ".join(str(item) for item in value) or "nothing"
    return str(value)
