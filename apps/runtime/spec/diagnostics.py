"""What can be wrong with a spec: one code per rule, and the collector that gathers findings in line order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal

Severity = Literal["error", "warning"]

#: Every code with its severity and the rule it stands for. `docs/spec.md` holds the same table.
CODES: Mapping[str, tuple[Severity, str]] = MappingProxyType(
    {
        # the text
        "too_large": ("error", "A spec has at most 256 KiB."),
        "too_many_lines": ("error", "A spec has at most 4,096 lines."),
        "bad_character": ("error", "Keys and values are printable ASCII."),
        "no_equals": ("error", "A line is `key=value`, blank, or begins with `#`."),
        "space_around_equals": ("error", "There is no white space around `=`."),
        "bad_key": ("error", "A key is ASCII words separated by dots."),
        "bad_index": ("error", "An index is decimal without leading zeros, at most six digits."),
        "duplicate_key": ("error", "A key is given once."),
        "unknown_key": ("warning", "Keys that this version does not know are dropped."),
        "key_of_other_target": ("warning", "Keys of another target are dropped."),
        # common
        "missing_spec_version": ("error", "`spec.version` is required."),
        "unsupported_spec_version": ("error", "The only version is 1."),
        "missing_name": ("error", "`pipeline.name` is required."),
        "bad_name": ("error", "A name is `[a-z0-9][a-z0-9_-]{0,62}`."),
        "missing_target": ("error", "`pipeline.target` is required."),
        "unknown_target": ("error", "A target is `SingleRing` or `LaneGraph`."),
        # single ring, settings
        "bad_integer": ("error", "An integer is decimal without leading zeros, at most nine digits."),
        "shards_below_one": ("error", "A ring has at least one shard."),
        "too_many_shards": ("error", "A ring has at most 1,024 shards."),
        "unknown_ordering": ("error", "An ordering is `strict` or `per_key`."),
        "unknown_producer": ("error", "A producer is `single`."),
        "mpmc_refused": ("error", "The producer `mpmc` is refused in version 1."),
        "unknown_scheduling": ("error", "A scheduling is `dedicated`."),
        "work_queue_refused": ("error", "The scheduling `work_queue` is refused in version 1."),
        "strict_needs_one_shard": ("error", "`ordering=strict` needs `shards=1`."),
        "shards_need_per_key": ("error", "More than one shard needs `ordering=per_key`."),
        "shards_need_shard_key": ("error", "More than one shard needs a shard key."),
        "bad_shard_key": ("error", "A shard key is a field name."),
        "unused_shard_key": ("warning", "With `ordering=strict` a shard key means nothing and is dropped."),
        # single ring, stages
        "no_stages": ("error", "A ring has at least one stage."),
        "too_many_stages": ("error", "A ring has at most four stages."),
        "stage_gap": ("error", "Stage indexes start at 0 and have no gaps."),
        "missing_stage_id": ("error", "A stage has an id."),
        "bad_stage_id": ("error", "A stage id is `[a-z0-9][a-z0-9_-]{0,62}`."),
        "duplicate_stage_id": ("error", "Stage ids are unique."),
        "missing_stage_op": ("error", "A stage has an op."),
        "unknown_op": ("error", "The op is one this version knows."),
        "bad_op_argument": ("error", "The op's argument is well-formed."),
        "dependency_gap": ("error", "Dependency indexes start at 0 and have no gaps."),
        "bad_dependency": ("error", "A dependency is the index of a stage."),
        "unknown_dependency": ("error", "A dependency names a stage that exists."),
        "self_dependency": ("error", "A stage does not depend on itself."),
        "forward_dependency": ("error", "A dependency names an earlier stage."),
        "duplicate_dependency": ("error", "A dependency is named once."),
        "dependencies_not_increasing": ("error", "Dependencies are strictly increasing."),
        "missing_dependencies": (
            "error",
            "A stage that is not first and not `identity` names its dependencies.",
        ),
        # lane graph, lanes
        "unknown_on_full": ("error", "What happens on a full lane is `block` or `drop`."),
        "lane_gap": ("error", "Lane indexes start at 0 and have no gaps."),
        "missing_lane_name": ("error", "A lane has a name."),
        "bad_lane_name": ("error", "A lane's name is `[a-z0-9][a-z0-9_-]{0,62}`."),
        "duplicate_lane_name": ("error", "Lane names are unique."),
        "missing_lane_kind": ("error", "A lane has a kind."),
        "unknown_lane_kind": ("error", "A lane is `events`, `journal`, `sequenced_slots` or `fanout_broadcast`."),
        "capacity_out_of_range": ("error", "A capacity is 1 to 1,048,576."),
        "consumers_out_of_range": ("error", "A fanout has 1 to 16 consumers."),
        "consumers_need_fanout": ("error", "Only a `fanout_broadcast` lane has more consumers than one."),
        "consumers_mismatch": ("error", "A fanout's `consumers` is the number of its real consumers."),
        "unknown_lane": ("error", "A lane that is named exists."),
        "lane_without_producer": ("error", "A lane has a producer."),
        "lane_without_consumer": ("error", "A lane has a consumer."),
        "too_many_producers": ("error", "A lane has one producer, unless its kind is `events`."),
        "too_many_consumers": ("error", "A lane has one consumer, unless its kind is `fanout_broadcast`."),
        # lane graph, endpoints
        "endpoint_gap": ("error", "Endpoint indexes start at 0 and have no gaps."),
        "missing_endpoint_lane": ("error", "An endpoint names its lane."),
        "missing_endpoint_kind": ("error", "An endpoint has a kind."),
        "unknown_endpoint_kind": ("error", "An endpoint is `ingress` or `egress`."),
        "duplicate_endpoint": ("error", "A lane is made an ingress, or an egress, once."),
        "no_ingress": ("error", "A graph has at least one ingress."),
        "no_egress": ("error", "A graph has at least one egress."),
        # lane graph, roles
        "too_many_roles": ("error", "A graph has at most 256 roles."),
        "role_gap": ("error", "Role indexes start at 0 and have no gaps."),
        "missing_role_name": ("error", "A role has a name."),
        "bad_role_name": ("error", "A role's name is `[a-z0-9][a-z0-9_-]{0,62}`."),
        "duplicate_role_name": ("error", "Role names are unique."),
        "missing_role_kind": ("error", "A role has a kind."),
        "unknown_role_kind": ("error", "A role is a `stage`, `bridge`, `router` or `merge`."),
        "role_key_not_taken": ("error", "A role takes the keys of its kind and no others."),
        "missing_role_op": ("error", "A stage has an op."),
        "missing_rx": ("error", "A role takes records from a lane (`rx`; a merge: `rx.0`, `rx.1`, ...)."),
        "missing_tx": ("error", "A role puts records on a lane (`tx`; a router: `tx.0`, `tx.1`, ...)."),
        "port_gap": ("error", "The indexes of `rx` and `tx` start at 0 and have no gaps."),
        "duplicate_port": ("error", "A role names a lane once in its `rx` and once in its `tx`."),
        "router_needs_two_tx": ("error", "A router has at least two `tx`."),
        "merge_needs_two_rx": ("error", "A merge has at least two `rx`."),
        "missing_policy": ("error", "A router and a merge have a policy."),
        "unknown_policy": (
            "error",
            "A router's policy is `broadcast`, `round_robin` or `hash`; a merge's `arrival` or `ordered`.",
        ),
        "hash_needs_hash_key": ("error", "The policy `hash` needs a `hash_key`."),
        "hash_key_without_hash": ("error", "Only the policy `hash` has a `hash_key`."),
        "bad_hash_key": ("error", "A hash key is a field name."),
        # lane graph, the whole
        "cycle": ("error", "The graph has no cycle."),
        "role_off_path": ("error", "A role lies on a way from an ingress to an egress."),
        "too_many_copies": ("error", "A record and all its copies are put on lanes at most 65,536 times."),
    }
)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. `line` counts from 1; 0 is the file as a whole. `hint` is what to do about it."""

    severity: Severity
    code: str
    line: int
    key: str
    message: str
    hint: str

    def as_dict(self) -> dict[str, object]:
        """`{severity, code, line, key, message, hint}`."""
        return asdict(self)


MOST_DIAGNOSTICS = 200


def as_dicts(found: Sequence[Diagnostic]) -> list[dict[str, object]]:
    """The first `MOST_DIAGNOSTICS` of `found` as JSON, and one with the number of those left out."""
    shown = [item.as_dict() for item in found[:MOST_DIAGNOSTICS]]
    if more := len(found) - len(shown):
        shown.append(
            {
                "severity": "error"
                if any(item.severity == "error" for item in found[MOST_DIAGNOSTICS:])
                else "warning",
                "code": "more",
                "line": 0,
                "key": "",
                "message": f"And {more} more.",
                "hint": "Mend these first.",
            }
        )
    return shown


class Findings:
    """Gathers diagnostics; severity comes from the code."""

    def __init__(self) -> None:
        self._found: list[Diagnostic] = []
        self.any_error = False

    def add(self, code: str, line: int, key: str, message: str, hint: str = "") -> None:
        """Record a finding. `code` must be in `CODES`."""
        severity = CODES[code][0]
        self.any_error = self.any_error or severity == "error"
        self._found.append(Diagnostic(severity, code, line, clip(key), message, hint))

    def in_line_order(self) -> tuple[Diagnostic, ...]:
        """All findings, by line; those of one line in the order they were found."""
        return tuple(sorted(self._found, key=lambda found: found.line))


def clip(text: str, length: int = 80) -> str:
    """`text` for a message: at most `length` characters, nothing but printable ASCII."""
    shown = text if len(text) <= length else text[: length - 3] + "..."
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(char if " " <= char <= "~" else "?" for char in shown)
