"""Which road leads by which fault point, and who dies there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import roads
from tests.faults.journey import Journey

Road = Callable[[Journey], None]


@dataclass(frozen=True)
class Case:
    """Kill at `point` on `road`, the first time or after `skip` times; the agent's points are reached on its host."""

    point: str
    road: Road
    skip: int = 0

    @property
    def name(self) -> str:
        return f"{self.point}{f'+{self.skip}' if self.skip else ''}"

    @property
    def on_host(self) -> bool:
        return self.point.startswith("agent.")


CASES = [
    Case("pipelines.draft.before_commit", roads.author),
    Case("pipelines.draft.after_commit", roads.author),
    Case("pipelines.ingest.compiled", roads.author),
    Case("deployments.request.before_commit", roads.deploy),
    Case("deployments.build.signed", roads.deploy),
    Case("blobs.put.before_row", roads.deploy),
    Case("deployments.build.after_commit", roads.deploy),
    Case("agent.bundle.fetched", roads.deploy),
    Case("agent.switch.old_stopped", roads.twice, skip=1),
    Case("deployments.rollback.before_commit", roads.rollback),
]
