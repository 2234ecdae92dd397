"""How the lanes of a LaneGraph hang together: the rules that need more than one line.

A graph of two sorts of nodes, lanes and roles, so that a lane with many producers and many consumers is as many edges as lines.
Everything here is linear in lanes + roles + ports.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from apps.runtime.spec.diagnostics import Findings, clip
from apps.runtime.spec.model import EVENTS, FANOUT
from apps.runtime.spec.text import Entry

MAX_MOVES = 65_536


@dataclass(slots=True, eq=False)
class _Lane:
    name: str
    kind: str | None
    consumers_wanted: int | None
    line: int
    key: str
    consumers_line: int
    from_outside: int = 0
    to_outside: int = 0
    unsure: bool = False
    producers: list[_Role] = field(default_factory=list)
    consumers: list[_Role] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Role:
    name: str
    key: str
    line: int
    one_way: bool
    rx: list[_Lane] = field(default_factory=list)
    tx: list[_Lane] = field(default_factory=list)


class Wiring:
    """Takes lanes, then endpoints, then roles, and at the end checks the whole."""

    def __init__(self, found: Findings) -> None:
        self._found = found
        self._lanes: dict[str, _Lane] = {}
        self._roles: list[_Role] = []
        self._role_lines: dict[str, int] = {}
        self._ends: dict[tuple[str, str], int] = {}
        self._given: set[str | None] = set()
        self._sound = True

    def add_lane(
        self, name: str, kind: str | None, consumers: int | None, named: Entry, consumers_at: Entry | None
    ) -> None:
        """A lane called `name`. `kind` and `consumers` are None when they can't be read."""
        former = self._lanes.get(name)
        if former is not None:
            message = f"The lane of line {former.line} is called {name} too."
            self._found.add("duplicate_lane_name", named.line, named.key, message, "Give each lane its own name.")
            self._sound = False
            return
        line = consumers_at.line if consumers_at is not None else named.line
        self._lanes[name] = _Lane(name, kind, consumers, named.line, named.key, line)

    def add_endpoint(self, kind: str | None, lane: Entry | None) -> None:
        """An endpoint of the lane that `lane` names; None is what can't be read."""
        self._given.add(kind)
        if lane is None:
            return
        known = self._lane(lane)
        if kind is None:
            if known is not None:
                known.unsure = True
            return
        former = self._ends.setdefault((kind, lane.value), lane.line)
        if former != lane.line:
            message = f"{clip(lane.value, 63)} was made an {kind} in line {former}."
            self._found.add("duplicate_endpoint", lane.line, lane.key, message, "Remove the endpoint.")
        elif known is not None and kind == "ingress":
            known.from_outside = 1
        elif known is not None:
            known.to_outside = 1

    def add_role(
        self,
        name: str | None,
        named: Entry | None,
        at: tuple[str, int],
        rx: Iterable[Entry],
        tx: Iterable[Entry],
        *,
        one_way: bool = False,
    ) -> None:
        """A role between the lanes that `rx` and `tx` name, at this key and line. `name` is None when it can't be read.

        `one_way` is true when a record takes one of the `tx` and not all of them.
        """
        key, line = at
        if name is not None and named is not None:
            line = named.line
            former = self._role_lines.setdefault(name, line)
            if former != line:
                message = f"The role of line {former} is called {name} too."
                self._found.add("duplicate_role_name", line, named.key, message, "Give each role its own name.")
        role = _Role(name or key, key, line, one_way)
        role.rx = [lane for entry in rx if (lane := self._lane(entry)) is not None]
        role.tx = [lane for entry in tx if (lane := self._lane(entry)) is not None]
        self._sound = self._sound and bool(role.rx and role.tx)
        for lane in role.rx:
            lane.consumers.append(role)
        for lane in role.tx:
            lane.producers.append(role)
        self._roles.append(role)

    def check(self) -> None:
        """Report what is wrong with the whole: every lane's ends, cycles, and roles that lie on no way through.

        The last is not reported where a lane is named that does not exist: it would only follow from that.
        """
        for kind in ("ingress", "egress"):
            if kind not in self._given and None not in self._given:
                hint = f"Add an endpoint of the kind {kind}."
                self._found.add(f"no_{kind}", 0, "lane_graph.endpoints", f"The graph has no {kind}.", hint)
        for lane in self._lanes.values():
            if not lane.unsure:
                self._ends_of(lane)
        order = self._in_order()
        if len(order) < len(self._roles):
            self._cycles(set(order))
        else:
            self._moves(order)
        if self._sound:
            self._off_path()

    def _lane(self, entry: Entry) -> _Lane | None:
        lane = self._lanes.get(entry.value)
        if lane is None:
            message = f"There is no lane '{clip(entry.value, 63)}'."
            self._found.add("unknown_lane", entry.line, entry.key, message, "Name one of lane_graph.lanes.")
            self._sound = False
        return lane

    def _ends_of(self, lane: _Lane) -> None:
        def report(code: str, message: str, hint: str, line: int = 0) -> None:
            self._found.add(code, line or lane.line, lane.key, message, hint)

        producers = len(lane.producers) + lane.from_outside
        consumers = len(lane.consumers) + lane.to_outside
        if producers == 0:
            hint = "Name it in the tx of a role, or make it an ingress."
            report("lane_without_producer", f"Nothing puts records on {lane.name}.", hint)
        elif producers > 1 and lane.kind not in (EVENTS, None):
            message = f"{lane.name} has {producers} producers."
            report("too_many_producers", message, f"Leave one, or make the lane {EVENTS}, or put a merge in front.")
        if consumers == 0:
            hint = "Name it in the rx of a role, or make it an egress."
            report("lane_without_consumer", f"Nothing takes records from {lane.name}.", hint)
        elif lane.kind == FANOUT and consumers != (lane.consumers_wanted or consumers):
            message = f"{lane.name} says {lane.consumers_wanted} consumers and has {consumers}."
            report("consumers_mismatch", message, f"Write consumers={consumers}.", lane.consumers_line)
        elif lane.kind not in (FANOUT, None) and consumers > 1:
            message = f"{lane.name} has {consumers} consumers."
            report("too_many_consumers", message, f"Leave one, or make the lane a {FANOUT}, or put a router behind.")

    def _in_order(self) -> list[_Role]:
        """The roles in an order in which each follows all that feed it; those in a cycle or behind one are left out."""
        waits = {role: len(role.rx) for role in self._roles}
        feeds = {lane: len(lane.producers) for lane in self._lanes.values()}
        lanes = [lane for lane in self._lanes.values() if not lane.producers]
        order = [role for role in self._roles if not role.rx]
        done = 0
        while lanes or done < len(order):
            while lanes:
                for role in lanes.pop().consumers:
                    waits[role] -= 1
                    if waits[role] == 0:
                        order.append(role)
            if done < len(order):
                for lane in order[done].tx:
                    feeds[lane] -= 1
                    if feeds[lane] == 0:
                        lanes.append(lane)
                done += 1
        return order

    def _cycles(self, ordered: set[_Role]) -> None:
        """Report cycles among the roles that are not `ordered`: walk against the stream, where there is always a next one."""
        walked: dict[_Role, int] = {}
        upstream = {
            lane: next((one for one in lane.producers if one not in ordered), None) for lane in self._lanes.values()
        }
        for number, start in enumerate(self._roles):
            way: list[_Role] = []
            role: _Role | None = start if start not in ordered else None
            while role is not None and role not in walked:
                walked[role] = number
                way.append(role)
                role = next((one for lane in role.rx if (one := upstream[lane]) is not None), None)
            if role is None or walked[role] != number:
                continue
            circle = way[way.index(role) :][::-1]
            first = min(circle, key=lambda one: one.line)
            at = circle.index(first)
            names = [one.name for one in (*circle[at:], *circle[:at], first)]
            shown = " -> ".join(names if len(names) <= 8 else [*names[:6], "...", names[-1]])
            hint = "Take one of these roles' lanes out of the circle."
            self._found.add("cycle", first.line, first.key, f"Records go in a circle: {shown}.", hint)

    def _moves(self, order: list[_Role]) -> None:
        """How often, at the most, a record and all that is copied from it come onto a lane, from each lane on to the ends."""
        moves: dict[_Lane, int] = {}
        through: dict[_Role, int] = {}

        def onto(lane: _Lane) -> int:
            if lane not in moves:
                moves[lane] = 1 + sum(through[role] for role in lane.consumers)
            return moves[lane]

        for role in reversed(order):
            onward = [onto(lane) for lane in role.tx] or [0]
            through[role] = max(onward) if role.one_way else sum(onward)
            if through[role] > MAX_MOVES:
                message = f"A record that comes to {role.name} may become so many that they are moved more than {MAX_MOVES} times."
                hint = "Don't copy again and again what was merged."
                self._found.add("too_many_copies", role.line, role.key, message, hint)
                return

    def _off_path(self) -> None:
        fed = _reached([lane for lane in self._lanes.values() if lane.from_outside], downstream=True)
        consumed = _reached([lane for lane in self._lanes.values() if lane.to_outside], downstream=False)
        for role in self._roles:
            if role in fed and role in consumed:
                continue
            side = "to an egress leads from" if role in fed else "from an ingress leads to"
            message = f"No way {side} {role.name}."
            self._found.add("role_off_path", role.line, role.key, message, "Connect it, or remove it.")


def _reached(lanes: list[_Lane], *, downstream: bool) -> set[_Role]:
    """The roles that records from `lanes` can reach, or against the stream, those whose records can reach `lanes`."""
    seen = set(lanes)
    roles: set[_Role] = set()
    while lanes:
        lane = lanes.pop()
        for role in lane.consumers if downstream else lane.producers:
            if role not in roles:
                roles.add(role)
                new = [one for one in (role.tx if downstream else role.rx) if one not in seen]
                seen.update(new)
                lanes += new
    return roles
