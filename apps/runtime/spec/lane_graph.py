"""LaneGraph:

known by name, not available yet. Its keys are taken as they are; its size limit already holds.
"""

from __future__ import annotations

from collections.abc import Mapping

from apps.runtime.spec.diagnostics import Findings
from apps.runtime.spec.model import TargetModel
from apps.runtime.spec.text import Entry

PREFIX = "lane_graph."
MAX_ROLES = 256


def read(entries: Mapping[str, Entry], found: Findings) -> tuple[TargetModel | None, list[Entry]]:
    """Never a model:

    a LaneGraph with more than 256 roles is refused, every other one is answered by the caller.
    """
    roles: dict[str, int] = {}
    for entry in entries.values():
        words = entry.key.split(".", 3)
        if len(words) > 2 and words[1] == "roles":
            roles.setdefault(words[2], entry.line)
    if len(roles) > MAX_ROLES:
        line = list(roles.values())[MAX_ROLES]
        message = f"The graph has {len(roles)} roles; {MAX_ROLES} are allowed."
        found.add("too_many_roles", line, PREFIX + "roles", message, "Split the pipeline.")
    return None, []
