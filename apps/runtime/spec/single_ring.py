"""SingleRing: reads its keys, checks every rule, and gives the model when nothing is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from apps.runtime.ops.registry import Op, OpError, parse_op
from apps.runtime.spec.diagnostics import Findings, clip
from apps.runtime.spec.model import SingleRing, Stage, is_field, is_name
from apps.runtime.spec.text import Entry, index_of, number_of

PREFIX = "single_ring."
KEYS = tuple(PREFIX + name for name in ("shards", "ordering", "producer", "scheduling", "shard_key"))
STAGE_KEYS = tuple(PREFIX + "stages.0." + name for name in ("id", "op", "depends_on.0"))
MAX_STAGES = 4
MAX_SHARDS = 1024


@dataclass(slots=True)
class _StageLines:
    """The lines of one stage, as written."""

    line: int
    id: Entry | None = None
    op: Entry | None = None
    depends_on: dict[int, Entry] = field(default_factory=dict)


def read(entries: Mapping[str, Entry], found: Findings) -> tuple[SingleRing | None, list[Entry]]:
    """The ring that `entries` describe, and the entries that are not known keys of it.

    `entries` are those whose key begins with `single_ring.`. Every broken rule is added to `found`; the
    ring is None when one of them makes it unreadable, and must be ignored when any of them is an error.
    """
    unknown: list[Entry] = []
    plain: dict[str, Entry] = {}
    stages: dict[int, _StageLines] = {}
    for entry in entries.values():
        if entry.key in KEYS:
            plain[entry.key.removeprefix(PREFIX)] = entry
        elif not _read_stage_key(entry, stages, found):
            unknown.append(entry)
    known = _settings(plain, found)
    ordered = _stages(stages, found)
    if known is None or ordered is None:
        return None, unknown
    return SingleRing(*known, stages=ordered), unknown


def _read_stage_key(entry: Entry, stages: dict[int, _StageLines], found: Findings) -> bool:
    """Whether `entry` is a key of a stage; it is then filed under it."""
    words = entry.key.removeprefix(PREFIX).split(".")
    if words[0] != "stages" or len(words) not in (3, 4):
        return False
    if words[2:] not in (["id"], ["op"]) and not (len(words) == 4 and words[2] == "depends_on"):
        return False
    number = index_of(words[1])
    at = index_of(words[3]) if len(words) == 4 else 0
    if number is None or at is None:
        wrong = words[1] if number is None else words[3]
        hint = "Count 0, 1, 2, ... without leading zeros."
        found.add("bad_index", entry.line, entry.key, f"'{clip(wrong, 20)}' is not an index.", hint)
        return True
    stage = stages.setdefault(number, _StageLines(entry.line))
    if words[2] == "id":
        stage.id = entry
    elif words[2] == "op":
        stage.op = entry
    else:
        stage.depends_on[at] = entry
    return True


def _settings(plain: Mapping[str, Entry], found: Findings) -> tuple[int, str, str, str, str | None] | None:
    def line(name: str) -> int:
        return plain[name].line if name in plain else 0

    def choice(name: str, default: str, allowed: tuple[str, ...], refused: str | None) -> str | None:
        entry = plain.get(name)
        if entry is None or entry.value == default:
            return default
        if refused is not None and entry.value == refused:
            message = f"{name}={refused} is refused in version 1."
            found.add(
                f"{refused}_refused",
                entry.line,
                entry.key,
                message,
                f"Write {name}={default}, or drop the line.",
            )
            return None
        if entry.value in allowed:
            return entry.value
        message = f"'{clip(entry.value, 40)}' is no {name}."
        found.add(f"unknown_{name}", entry.line, entry.key, message, f"Write {' or '.join((default, *allowed))}.")
        return None

    shards: int | None = 1
    if "shards" in plain:
        shards = number_of(plain["shards"].value)
        if shards is None:
            message = f"'{clip(plain['shards'].value, 40)}' is not a whole number."
            found.add("bad_integer", line("shards"), KEYS[0], message, "Write digits only, without leading zeros.")
        elif shards < 1:
            found.add("shards_below_one", line("shards"), KEYS[0], "A ring has at least one shard.", "Write 1.")
            shards = None
        elif shards > MAX_SHARDS:
            message = f"{shards} shards; {MAX_SHARDS} are allowed."
            found.add("too_many_shards", line("shards"), KEYS[0], message, f"Write 1 to {MAX_SHARDS}.")
            shards = None
    ordering = choice("ordering", "strict", ("per_key",), None)
    producer = choice("producer", "single", (), "mpmc")
    scheduling = choice("scheduling", "dedicated", (), "work_queue")
    shard_key = plain["shard_key"].value if "shard_key" in plain else None
    if shard_key is not None and not is_field(shard_key):
        message = f"'{clip(shard_key, 40)}' is not a field name."
        hint = "Name a field of the records, such as customer.id."
        found.add("bad_shard_key", line("shard_key"), KEYS[4], message, hint)
        shard_key = None
    if shards is not None and shards > 1:
        if ordering == "strict" and "ordering" in plain:
            message = f"ordering=strict with {shards} shards."
            hint = "Set shards to 1, or ordering to per_key."
            found.add("strict_needs_one_shard", line("ordering"), KEYS[1], message, hint)
        elif ordering == "strict":
            message = f"{shards} shards, but no ordering=per_key."
            found.add("shards_need_per_key", line("shards"), KEYS[0], message, "Add single_ring.ordering=per_key.")
        if "shard_key" not in plain:
            message = f"{shards} shards, but no shard key."
            hint = "Add single_ring.shard_key with the field that records are split by."
            found.add("shards_need_shard_key", line("shards"), KEYS[0], message, hint)
    elif shards is not None and shard_key is not None and ordering == "strict":
        message = "With ordering=strict the shard key means nothing and is dropped."
        found.add("unused_shard_key", line("shard_key"), KEYS[4], message, "Remove the line.")
        shard_key = None
    if shards is None or ordering is None or producer is None or scheduling is None:
        return None
    return shards, ordering, producer, scheduling, shard_key


def _stages(stages: Mapping[int, _StageLines], found: Findings) -> tuple[Stage, ...] | None:
    if not stages:
        hint = "Add single_ring.stages.0.id and single_ring.stages.0.op."
        found.add("no_stages", 0, PREFIX + "stages", "The ring has no stage.", hint)
        return None
    numbers = sorted(stages)
    if len(numbers) > MAX_STAGES:
        message = f"The ring has {len(numbers)} stages; {MAX_STAGES} are allowed."
        stage = stages[numbers[MAX_STAGES]]
        hint = "Fuse stages (dataguard_fused checks and redacts), or split the pipeline."
        found.add("too_many_stages", stage.line, f"{PREFIX}stages.{numbers[MAX_STAGES]}", message, hint)
    for expected, number in enumerate(numbers):
        if number != expected:
            message = f"Stage {expected} is missing before stage {number}."
            hint = "Number the stages 0, 1, 2, ..."
            found.add("stage_gap", stages[number].line, f"{PREFIX}stages.{number}", message, hint)
            break
    seen: dict[str, int] = {}
    read: list[Stage] = []
    for number in numbers:
        stage_id = _stage_id(number, stages[number], seen, found)
        op = _stage_op(number, stages[number], found)
        depends_on = _dependencies(number, stages, op, found)
        if stage_id is not None and op is not None and depends_on is not None:
            read.append(Stage(stage_id, op, depends_on))
    return tuple(read) if len(read) == len(numbers) else None


def _stage_id(number: int, stage: _StageLines, seen: dict[str, int], found: Findings) -> str | None:
    key = f"{PREFIX}stages.{number}.id"
    if stage.id is None:
        found.add("missing_stage_id", stage.line, key, f"Stage {number} has no id.", f"Add {key}.")
        return None
    text = stage.id.value
    if not is_name(text):
        message = f"'{clip(text, 40)}' is not a stage id."
        hint = "Use a-z, 0-9, _ and -, at most 63, not beginning with _ or -."
        found.add("bad_stage_id", stage.id.line, key, message, hint)
        return None
    if text in seen:
        message = f"Stage {seen[text]} is called {text} too."
        found.add("duplicate_stage_id", stage.id.line, key, message, "Give each stage an id of its own.")
        return None
    seen[text] = number
    return text


def _stage_op(number: int, stage: _StageLines, found: Findings) -> Op | None:
    key = f"{PREFIX}stages.{number}.op"
    if stage.op is None:
        found.add("missing_stage_op", stage.line, key, f"Stage {number} has no op.", f"Add {key}.")
        return None
    try:
        return parse_op(stage.op.value)
    except OpError as problem:
        found.add(problem.code, stage.op.line, key, clip(problem.message, 200), problem.hint)
        return None


def _dependencies(
    number: int, stages: Mapping[int, _StageLines], op: Op | None, found: Findings
) -> tuple[int, ...] | None:
    lines = stages[number].depends_on
    prefix = f"{PREFIX}stages.{number}.depends_on"
    if not lines:
        if number > 0 and op is not None and op.name != "identity":
            message = f"Stage {number} ({op.name}) does not say what it depends on."
            op_line = stages[number].op
            line = op_line.line if op_line is not None else stages[number].line
            hint = f"Add {prefix}.0={number - 1}."
            found.add("missing_dependencies", line, prefix, message, hint)
            return None
        return ()
    good = True

    def refuse(code: str, entry: Entry, message: str, hint: str) -> None:
        nonlocal good
        good = False
        found.add(code, entry.line, entry.key, message, hint)

    named: list[int] = []
    seen: set[int] = set()
    gap_reported = False
    for expected, at in enumerate(sorted(lines)):
        entry = lines[at]
        if at != expected and not gap_reported:
            gap_reported = True
            refuse("dependency_gap", entry, f"depends_on.{expected} is missing.", "Number them 0, 1, 2, ...")
        value = index_of(entry.value)
        if value is None:
            message = f"'{clip(entry.value, 40)}' is not the index of a stage."
            refuse("bad_dependency", entry, message, "Write the number of an earlier stage.")
        elif value == number:
            hint = "Name an earlier stage, or remove the line."
            refuse("self_dependency", entry, f"Stage {number} depends on itself.", hint)
        elif value not in stages:
            refuse("unknown_dependency", entry, f"There is no stage {value}.", "Name an earlier stage.")
        elif value > number:
            message = f"Stage {number} depends on the later stage {value}."
            refuse("forward_dependency", entry, message, "Order the stages so that each names earlier ones only.")
        elif value in seen:
            refuse("duplicate_dependency", entry, f"Stage {value} was already named.", "Remove the line.")
        elif named and value < named[-1]:
            message = f"{value} comes after {named[-1]}."
            refuse("dependencies_not_increasing", entry, message, "Write the dependencies in increasing order.")
        if value is not None:
            named.append(value)
            seen.add(value)
    return tuple(named) if good else None
