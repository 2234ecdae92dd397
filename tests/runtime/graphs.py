"""Graphs that keep every rule, of all ops there are, made at random.

They come from a seed, because drawn piece by piece they turn out too small to prove much.
"""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st

from tests.runtime.op_examples import op_texts
from tests.runtime.specs import Lane, Role, bridge, graph, merge, router, stage


class _Building:
    """Lanes and roles so far. `open` has each lane as often as it still needs a consumer."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.ops = op_texts()
        self.lanes: list[Lane] = []
        self.kinds: dict[str, str] = {}
        self.roles: dict[str, Role] = {}
        self.open: list[str] = []
        self.names = iter(random.sample([f"n{number}" for number in range(200)], 200))

    def lane(self) -> str:
        name = next(self.names)
        kind = self.random.choice(["events", "events", "journal", "sequenced_slots", "fanout_broadcast"])
        more: dict[str, object] = {"capacity": self.random.randint(1, 4)}
        consumers = self.random.randint(1, 3) if kind == "fanout_broadcast" else 1
        if kind == "fanout_broadcast":
            more["consumers"] = consumers
        self.lanes.append((name, kind, more))
        self.kinds[name] = kind
        self.open += [name] * consumers
        return name

    def target(self, not_in: set[str]) -> str:
        """A lane to put records on: a new one, or an events lane that nothing has taken from yet."""
        shared = [name for name in self.open if self.kinds[name] == "events" and name not in not_in]
        if shared and self.random.random() < 0.5:
            return self.random.choice(shared)
        return self.lane()

    def take(self, number: int) -> list[str]:
        """So many different open lanes, fewer if there are fewer."""
        taken: list[str] = []
        for name in self.random.sample(self.open, len(self.open)):
            if name not in taken and len(taken) < number:
                taken.append(name)
        for name in taken:
            self.open.remove(name)
        return taken

    def targets(self, number: int) -> list[str]:
        found: list[str] = []
        for _ in range(number):
            found.append(self.target(set(found)))
        return found

    def add(self) -> None:
        kind = self.random.choice(["stage", "stage", "bridge", "router", "router", "merge"])
        name = next(self.names)
        if kind == "merge" and len(set(self.open)) >= 2:
            rx = self.take(self.random.randint(2, 3))
            self.roles[name] = merge(self.random.choice(["arrival", "ordered"]), self.target(set()), *rx)
        elif kind == "router":
            (rx,) = self.take(1)
            policy = self.random.choice(["broadcast", "broadcast", "round_robin", "hash"])
            more = {"hash_key": "id"} if policy == "hash" else {}
            self.roles[name] = router(policy, rx, *self.targets(self.random.randint(2, 3)), **more)
        elif kind == "stage":
            (rx,) = self.take(1)
            self.roles[name] = stage(self.random.choice(self.ops), rx, self.target(set()))
        else:
            (rx,) = self.take(1)
            self.roles[name] = bridge(rx, self.target(set()))

    def finish(self) -> list[str]:
        """The egress lanes: every open one, where one lane is open twice with a bridge between."""
        ends: list[str] = []
        while self.open:
            name = self.open.pop()
            if name in ends:
                self.roles[next(self.names)] = bridge(name, self.lane())
            else:
                ends.append(name)
        return ends


def graph_of(seed: int) -> str:
    """The text of a graph with up to eight roles, and a few more that lead out."""
    random = Random(seed)
    made = _Building(random)
    ingress = [made.lane() for _ in range(random.randint(1, 2))]
    for _ in range(random.randint(0, 8)):
        made.add()
    ends = [("ingress", name) for name in ingress] + [("egress", name) for name in made.finish()]
    return graph(made.lanes, ends, made.roles, on_full=random.choice(["block", "drop", None]))


seeds = st.integers(0, 2**32 - 1)
graphs = seeds.map(graph_of)
