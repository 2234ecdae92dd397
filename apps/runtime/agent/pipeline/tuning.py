"""What becomes of the speed that a bundle wishes for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.runtime.spec.plan import Plan


def tuning_of(wishes: Mapping[str, Any], plan: Plan, most: int) -> dict[str, Any]:
    """What becomes of a bundle's wishes on a host that takes at most `most` records at a time, in one thread."""
    shards = dict(plan.settings).get("shards", 1)
    requested: dict[str, Any] = {"profile": "default", **wishes}
    applied: dict[str, Any] = {"profile": "default", "batch_size": min(most, wishes.get("batch_size", most))}
    degraded: list[str] = []
    if requested["profile"] != "default":
        degraded.append(f"profile {requested['profile']}: this agent has no other than default")
    if wishes.get("batch_size", 0) > most:
        degraded.append(f"batch_size {wishes['batch_size']}: this agent hands over at most {most} records at a time")
    if "buffer_records" in wishes:
        degraded.append("buffer_records: this agent buffers nothing, records wait where they come from")
    if isinstance(shards, int) and shards > 1:
        requested["shards"], applied["shards"] = shards, 1
        degraded.append(f"shards {shards}: this agent runs all of them in one thread")
    return {"requested": requested, "applied": applied, "degraded": degraded}
