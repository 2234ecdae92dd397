"""LaneGraph: reads its keys, checks every rule that concerns one lane, endpoint or role, and leaves the whole to `wiring`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from apps.runtime.ops.registry import Op, OpError, parse_op
from apps.runtime.spec.diagnostics import Findings, clip
from apps.runtime.spec.model import (
    DEFAULT_CAPACITY,
    ENDPOINT_KINDS,
    FANOUT,
    LANE_KINDS,
    POLICIES,
    ROLE_KINDS,
    Endpoint,
    GraphLane,
    LaneGraph,
    Role,
    is_field,
    is_name,
)
from apps.runtime.spec.text import Entry, index_of, number_of
from apps.runtime.spec.wiring import Wiring

PREFIX = "lane_graph."
KEYS = tuple(
    PREFIX + name
    for name in (
        "on_full",
        *(f"lanes.0.{name}" for name in ("name", "kind", "capacity", "consumers")),
        *(f"endpoints.0.{name}" for name in ("lane", "kind")),
        *(f"roles.0.{name}" for name in ("name", "kind", "op", "rx", "tx", "rx.0", "tx.0", "policy", "hash_key")),
    )
)
MAX_ROLES = 256
MAX_CAPACITY = 1_048_576
MAX_CONSUMERS = 16

_KNOWN = {
    "lanes": frozenset(("name", "kind", "capacity", "consumers")),
    "endpoints": frozenset(("lane", "kind")),
    "roles": frozenset(("name", "kind", "op", "rx", "tx", "policy", "hash_key")),
}
_ONE = {"lanes": "lane", "endpoints": "endpoint", "roles": "role"}
#: Which keys a kind of role takes besides name and kind; `rx.` and `tx.` are the numbered ones.
_TAKES = {
    "stage": frozenset(("op", "rx", "tx")),
    "bridge": frozenset(("rx", "tx")),
    "router": frozenset(("rx", "tx.", "policy", "hash_key")),
    "merge": frozenset(("rx.", "tx", "policy")),
}


_Read = TypeVar("_Read")


@dataclass(slots=True)
class Item:
    """The lines of one lane, endpoint or role, as written; `ports` holds `rx.M` and `tx.M`."""

    key: str
    line: int
    plain: dict[str, Entry] = field(default_factory=dict)
    ports: dict[str, dict[int, Entry]] = field(default_factory=dict)


def read(entries: Mapping[str, Entry], found: Findings) -> tuple[LaneGraph | None, list[Entry]]:
    """The graph that `entries` describe, and the entries that are not known keys of it.

    `entries` are those whose key begins with `lane_graph.`. Every broken rule is added to `found`; the graph is None when one
    of them makes it unreadable, and must be ignored when any of them is an error. Linear in the number of entries.
    """
    unknown: list[Entry] = []
    items: dict[str, dict[int, Item]] = {"lanes": {}, "endpoints": {}, "roles": {}}
    on_full: str | None = "block"
    for entry in entries.values():
        if entry.key == KEYS[0]:
            on_full = _choice(entry, ("block", "drop"), "unknown_on_full", found)
        elif not _file(entry, items, found):
            unknown.append(entry)
    for group, numbered in items.items():
        _no_gaps(group, numbered, found)
    wiring = Wiring(found)
    lanes = _each(items["lanes"], lambda item: _lane(item, wiring, found))
    endpoints = _each(items["endpoints"], lambda item: _endpoint(item, wiring, found))
    roles = _each(items["roles"], lambda item: _role(item, wiring, found))
    _too_many_roles(items["roles"], found)
    wiring.check()
    if on_full is None or lanes is None or endpoints is None or roles is None:
        return None, unknown
    return LaneGraph.of(on_full, lanes, endpoints, roles), unknown


def _file(entry: Entry, items: dict[str, dict[int, Item]], found: Findings) -> bool:
    """Whether `entry` is a known key of a lane, an endpoint or a role; it is then filed under it."""
    words = entry.key.split(".")
    indexed = len(words) == 5
    if not (indexed or len(words) == 4) or words[3] not in _KNOWN.get(words[1], ()):
        return False
    if indexed and words[3] not in ("rx", "tx"):
        return False
    number = index_of(words[2])
    at = index_of(words[4]) if indexed else 0
    if number is None or at is None:
        wrong = words[2] if number is None else words[4]
        hint = "Count 0, 1, 2, ... without leading zeros."
        found.add("bad_index", entry.line, entry.key, f"'{clip(wrong, 20)}' is not an index.", hint)
        return True
    group = items[words[1]]
    item = group.get(number)
    if item is None:
        item = group[number] = Item(f"{PREFIX}{words[1]}.{number}", entry.line)
    if indexed:
        item.ports.setdefault(words[3], {})[at] = entry
    else:
        item.plain[words[3]] = entry
    return True


def _no_gaps(group: str, numbered: Mapping[int, Item], found: Findings) -> None:
    one = _ONE[group]
    for expected, number in enumerate(sorted(numbered)):
        if number != expected:
            message = f"The {one} {expected} is missing before {one} {number}."
            hint = f"Number the {group} 0, 1, 2, ..."
            found.add(f"{one}_gap", numbered[number].line, numbered[number].key, message, hint)
            return


def _too_many_roles(roles: Mapping[int, Item], found: Findings) -> None:
    if len(roles) > MAX_ROLES:
        item = roles[sorted(roles)[MAX_ROLES]]
        message = f"The graph has {len(roles)} roles; {MAX_ROLES} are allowed."
        found.add("too_many_roles", item.line, item.key, message, "Split the pipeline.")


def _each(items: Mapping[int, Item], read_one: Callable[[Item], _Read | None]) -> list[_Read] | None:
    """What `read_one` made of every item, by number; None when it could not make something of each."""
    made = [read_one(items[number]) for number in sorted(items)]
    good = [one for one in made if one is not None]
    return good if len(good) == len(made) else None


def _missing(code: str, item: Item, name: str, found: Findings) -> None:
    key = f"{item.key}.{name}"
    found.add(code, item.line, key, f"{key} is missing.", f"Add {key}.")


def _choice(entry: Entry, allowed: tuple[str, ...], code: str, found: Findings) -> str | None:
    if entry.value in allowed:
        return entry.value
    message = f"'{clip(entry.value, 40)}' is not known here."
    found.add(code, entry.line, entry.key, message, f"Write {' or '.join(allowed)}.")
    return None


def _kind(item: Item, one: str, allowed: tuple[str, ...], found: Findings) -> str | None:
    if "kind" not in item.plain:
        _missing(f"missing_{one}_kind", item, "kind", found)
        return None
    return _choice(item.plain["kind"], allowed, f"unknown_{one}_kind", found)


def _name(item: Item, one: str, found: Findings) -> str | None:
    entry = item.plain.get("name")
    if entry is None:
        _missing(f"missing_{one}_name", item, "name", found)
        return None
    if not is_name(entry.value):
        message = f"'{clip(entry.value, 40)}' is not a name."
        hint = "Use a-z, 0-9, _ and -, at most 63, not beginning with _ or -."
        found.add(f"bad_{one}_name", entry.line, entry.key, message, hint)
        return None
    return entry.value


def _number(item: Item, name: str, default: int, most: int, code: str, found: Findings) -> int | None:
    entry = item.plain.get(name)
    if entry is None:
        return default
    value = number_of(entry.value)
    if value is None:
        message = f"'{clip(entry.value, 40)}' is not a whole number."
        found.add("bad_integer", entry.line, entry.key, message, "Write digits only, without leading zeros.")
    elif not 1 <= value <= most:
        found.add(code, entry.line, entry.key, f"{value} is not from 1 to {most}.", f"Write 1 to {most}.")
        return None
    return value


def _lane(item: Item, wiring: Wiring, found: Findings) -> GraphLane | None:
    name = _name(item, "lane", found)
    kind = _kind(item, "lane", LANE_KINDS, found)
    capacity = _number(item, "capacity", DEFAULT_CAPACITY, MAX_CAPACITY, "capacity_out_of_range", found)
    consumers: int | None = 1
    entry = item.plain.get("consumers")
    if kind == FANOUT:
        consumers = _number(item, "consumers", 1, MAX_CONSUMERS, "consumers_out_of_range", found)
    elif kind is not None and entry is not None and entry.value != "1":
        message = f"A lane of the kind {kind} has one consumer."
        hint = f"Remove the line, or make the lane a {FANOUT}."
        found.add("consumers_need_fanout", entry.line, entry.key, message, hint)
    if name is not None:
        wiring.add_lane(name, kind, consumers, item.plain["name"], entry)
    if name is None or kind is None or capacity is None or consumers is None:
        return None
    return GraphLane(name, kind, capacity, consumers)


def _endpoint(item: Item, wiring: Wiring, found: Findings) -> Endpoint | None:
    kind = _kind(item, "endpoint", ENDPOINT_KINDS, found)
    lane = item.plain.get("lane")
    if lane is None:
        _missing("missing_endpoint_lane", item, "lane", found)
    wiring.add_endpoint(kind, lane)
    return Endpoint(lane.value, kind) if lane is not None and kind is not None else None


def _role(item: Item, wiring: Wiring, found: Findings) -> Role | None:
    name = _name(item, "role", found)
    kind = _kind(item, "role", ROLE_KINDS, found)
    if kind is None:
        rx, tx = _every_port(item, "rx"), _every_port(item, "tx")
        wiring.add_role(name, item.plain.get("name"), (item.key, item.line), rx, tx)
        return None
    takes = _TAKES[kind]
    for key, entry in item.plain.items():
        # a hash_key where there is no hash is reported by a rule of its own
        if key not in takes and key not in ("name", "kind", "hash_key"):
            _not_taken(kind, entry, found)
    for side, numbered in item.ports.items():
        if side + "." not in takes:
            for entry in numbered.values():
                _not_taken(kind, entry, found)
    op = _op(item, found) if kind == "stage" else None
    rx = _ports(item, "rx", "rx." in takes, found)
    tx = _ports(item, "tx", "tx." in takes, found)
    policy, hash_key, good = _policy(item, kind, found)
    if kind == "router" and len(tx) == 1:
        hint = f"Add {item.key}.tx.1, or make the role a bridge."
        found.add("router_needs_two_tx", tx[0].line, tx[0].key, "The router has one tx.", hint)
    if kind == "merge" and len(rx) == 1:
        hint = f"Add {item.key}.rx.1, or make the role a bridge."
        found.add("merge_needs_two_rx", rx[0].line, rx[0].key, "The merge has one rx.", hint)
    one_way = policy in ("round_robin", "hash")
    wiring.add_role(name, item.plain.get("name"), (item.key, item.line), rx, tx, one_way=one_way)
    if name is None or not rx or not tx or not good or (kind == "stage" and op is None):
        return None
    return Role(
        name, kind, tuple(entry.value for entry in rx), tuple(entry.value for entry in tx), op, policy, hash_key
    )


def _not_taken(kind: str, entry: Entry, found: Findings) -> None:
    takes = ", ".join(f"{key}N" if key.endswith(".") else key for key in sorted(_TAKES[kind]))
    message = f"A {kind} takes no {entry.key.split('.', 3)[3]}."
    found.add("role_key_not_taken", entry.line, entry.key, message, f"A {kind} takes {takes}.")


def _op(item: Item, found: Findings) -> Op | None:
    entry = item.plain.get("op")
    if entry is None:
        _missing("missing_role_op", item, "op", found)
        return None
    try:
        return parse_op(entry.value)
    except OpError as problem:
        found.add(problem.code, entry.line, entry.key, clip(problem.message, 200), problem.hint)
        return None


def _every_port(item: Item, side: str) -> tuple[Entry, ...]:
    """The lines that name lanes of one side, whatever kind of role would take them."""
    plain = (item.plain[side],) if side in item.plain else ()
    return (*plain, *item.ports.get(side, {}).values())


def _ports(item: Item, side: str, numbered: bool, found: Findings) -> tuple[Entry, ...]:
    """The lines that name the lanes of one side, in order; nothing is reported."""
    if not numbered:
        if side in item.plain:
            return (item.plain[side],)
        _missing(f"missing_{side}", item, side, found)
        return ()
    given = item.ports.get(side)
    if not given:
        _missing(f"missing_{side}", item, f"{side}.0", found)
        return ()
    first: dict[str, Entry] = {}
    gap_reported = False
    for expected, at in enumerate(sorted(given)):
        entry = given[at]
        if at != expected and not gap_reported:
            gap_reported = True
            message = f"{side}.{expected} is missing before {side}.{at}."
            found.add("port_gap", entry.line, entry.key, message, "Number them 0, 1, 2, ...")
        former = first.setdefault(entry.value, entry)
        if former is not entry:
            message = f"{clip(entry.value, 63)} was already named in line {former.line}."
            found.add("duplicate_port", entry.line, entry.key, message, "Name another lane, or remove the line.")
    return tuple(given[at] for at in sorted(given))


def _policy(item: Item, kind: str, found: Findings) -> tuple[str | None, str | None, bool]:
    """The policy, the hash key, and whether they are what a role of this kind needs."""
    policy: str | None = None
    good = True
    if kind in POLICIES:
        entry = item.plain.get("policy")
        if entry is None:
            _missing("missing_policy", item, "policy", found)
        else:
            policy = _choice(entry, POLICIES[kind], "unknown_policy", found)
        good = policy is not None
    key = item.plain.get("hash_key")
    if policy != "hash":
        if key is not None and (good or kind not in POLICIES):
            message = "Nothing is hashed here."
            found.add("hash_key_without_hash", key.line, key.key, message, "Remove the line, or write policy=hash.")
        return policy, None, good
    if key is None:
        line = item.plain["policy"].line
        hint = f"Add {item.key}.hash_key with the field that records are routed by."
        found.add("hash_needs_hash_key", line, f"{item.key}.hash_key", "policy=hash, but no hash_key.", hint)
        return policy, None, False
    if not is_field(key.value):
        message = f"'{clip(key.value, 40)}' is not a field name."
        found.add("bad_hash_key", key.line, key.key, message, "Name a field of the records, such as customer.id.")
        return policy, None, False
    return policy, key.value, True
