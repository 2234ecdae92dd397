"""Text in, everything that is known about it out: diagnostics, canonical text, hash, plan."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from apps.runtime.spec import lane_graph, single_ring
from apps.runtime.spec.diagnostics import Diagnostic, Findings, clip
from apps.runtime.spec.lowering import plan_of
from apps.runtime.spec.model import LaneGraph, SingleRing, canonical_text, is_name
from apps.runtime.spec.plan import Plan
from apps.runtime.spec.text import Entry, read_lines

COMMON_KEYS = ("spec.version", "pipeline.name", "pipeline.target")
TARGETS = ("SingleRing", "LaneGraph")
_ALL_KEYS = (*COMMON_KEYS, *single_ring.KEYS, *single_ring.STAGE_KEYS, *lane_graph.KEYS)
_MAX_SUGGESTIONS = 16


@dataclass(frozen=True, slots=True)
class Compilation:
    """What came of a text. `canonical`, `spec_hash` and `plan` are None unless `ok`.

    `name`, `target` and `capabilities` are what could be read, also of a wrong spec.
    """

    ok: bool
    diagnostics: tuple[Diagnostic, ...]
    name: str | None
    target: str | None
    canonical: str | None
    spec_hash: str | None
    capabilities: tuple[str, ...]
    plan: Plan | None

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The diagnostics that make the spec wrong."""
        return tuple(item for item in self.diagnostics if item.severity == "error")


def spec_hash_of(canonical: str) -> str:
    """`sha256:` and the hex SHA-256 of the canonical bytes."""
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()


def compile_spec(text: str | bytes) -> Compilation:
    """Compile a spec. Never raises: everything wrong with `text` is in the diagnostics, all at once.

    Time and memory are linear in the size of `text`, of which at most 256 KiB and 4,096 lines are looked at.
    """
    found = Findings()
    entries = read_lines(text, found)
    if entries is None:
        return Compilation(False, found.in_line_order(), None, None, None, None, (), None)
    name, target = _common(entries, found)
    rings: dict[str, Entry] = {}
    lanes: dict[str, Entry] = {}
    rest: list[Entry] = []
    for key, entry in entries.items():
        if key.startswith(lane_graph.PREFIX):
            lanes[key] = entry
        elif key.startswith(single_ring.PREFIX):
            rings[key] = entry
        elif key not in COMMON_KEYS:
            rest.append(entry)
    body: SingleRing | LaneGraph | None = None
    unknown: list[Entry] = []
    if target == "LaneGraph" or (target is None and lanes and not rings):
        body, unknown = lane_graph.read(lanes, found)
        _other_target(rings, "LaneGraph", found)
    elif target == "SingleRing" or rings:
        body, unknown = single_ring.read(rings, found)
        _other_target(lanes, "SingleRing", found)
    _unknown_keys([*rest, *unknown], found)
    diagnostics = found.in_line_order()
    capabilities = body.capabilities() if body is not None else ()
    if found.any_error or body is None or name is None:
        return Compilation(False, diagnostics, name, target, None, None, capabilities, None)
    canonical = canonical_text(name, body)
    spec_hash = spec_hash_of(canonical)
    plan = plan_of(name, spec_hash, body)
    return Compilation(True, diagnostics, name, target, canonical, spec_hash, capabilities, plan)


def _common(entries: Mapping[str, Entry], found: Findings) -> tuple[str | None, str | None]:
    version = entries.get("spec.version")
    if version is None:
        found.add("missing_spec_version", 0, "spec.version", "spec.version is missing.", "Add spec.version=1.")
    elif version.value != "1":
        message = f"Version '{clip(version.value, 20)}' is not known."
        found.add("unsupported_spec_version", version.line, version.key, message, "Write spec.version=1.")
    name = entries.get("pipeline.name")
    good_name: str | None = None
    if name is None:
        found.add("missing_name", 0, "pipeline.name", "pipeline.name is missing.", "Add pipeline.name=orders.")
    elif not is_name(name.value):
        message = f"'{clip(name.value, 40)}' is not a name."
        hint = "Use a-z, 0-9, _ and -, at most 63, not beginning with _ or -."
        found.add("bad_name", name.line, name.key, message, hint)
    else:
        good_name = name.value
    target = entries.get("pipeline.target")
    good_target: str | None = None
    if target is None:
        message = "pipeline.target is missing."
        found.add("missing_target", 0, "pipeline.target", message, "Add pipeline.target=SingleRing.")
    elif target.value not in TARGETS:
        message = f"'{clip(target.value, 40)}' is not a target."
        found.add("unknown_target", target.line, target.key, message, "Write pipeline.target=SingleRing or LaneGraph.")
    else:
        good_target = target.value
    return good_name, good_target


def _other_target(entries: Mapping[str, Entry], target: str, found: Findings) -> None:
    for entry in entries.values():
        message = f"{clip(entry.key, 60)} means nothing for {target} and is dropped."
        found.add("key_of_other_target", entry.line, entry.key, message, "Remove the line.")


def _unknown_keys(entries: list[Entry], found: Findings) -> None:
    """One warning each.

    Only the first few get a suggestion: the search for one costs more than reading a line.
    """
    for number, entry in enumerate(entries):
        near: list[str] = []
        if number < _MAX_SUGGESTIONS and len(entry.key) <= 64:
            near = difflib.get_close_matches(entry.key, _ALL_KEYS, n=1, cutoff=0.88)
        hint = f"Did you mean {near[0]}?" if near else "Remove the line."
        message = f"{clip(entry.key, 60)} is not known and is dropped."
        found.add("unknown_key", entry.line, entry.key, message, hint)
