"""A LaneGraph at work: one record at a time, from its ingress lane to every lane where it, or a copy of it, comes out.

A record's way through the graph is a **flight**. In a flight every role runs once, after all roles that feed it, over all
records of the flight that are on its lanes; nothing of one flight meets anything of another. So the order in which records
come in is the only order there is between them, and within a flight the order is fixed by the plan: whatever schedule the
roles run in, one after another or many flights at once, the same bytes come out of the same lanes in the same order. Two
conditions are all a schedule must keep: a role runs after the roles that feed it in the same flight, and after itself in the
flight before (a round robin goes on counting). `docs/spec.md` states the same for those who write specs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from apps.runtime.ops import Refused, Slot, Step, bucket_of
from apps.runtime.outcome import Emission, LaneMetrics, Metrics, Outcome, Refusal, Tally
from apps.runtime.spec.plan import EGRESS, INGRESS, OUTSIDE, Lane, Plan, PlanRole

# What never loses a record: a journal is there to have all of them, and a sequence has no gaps.
_LOSSLESS = ("journal", "sequenced_slots")


class Token:
    """A record on a lane. `hops` are the roles it has passed, `rank` is the place of the lane's producer that put it there."""

    __slots__ = ("hops", "rank", "slot")

    def __init__(self, slot: Slot, hops: int = 0, rank: int = 0) -> None:
        self.slot = slot
        self.hops = hops
        self.rank = rank

    def copy(self) -> Token:
        """Another record with the same bytes, at the same place."""
        return Token(self.slot.copy(), self.hops, self.rank)


class Flight:
    """One record's way: what is on the lanes, by port (a lane's consumer), and what has become of it so far."""

    __slots__ = ("done", "dropped", "ports", "refusals", "taken")

    def __init__(self, ports: tuple[tuple[Token, ...], ...]) -> None:
        self.ports: list[list[Token]] = [*map(list, ports)]
        self.refusals: list[Refusal] = []
        self.dropped: list[str] = []
        self.done: list[tuple[int, int]] = []  # role, forwarded
        self.taken: list[tuple[str, int, int]] = []  # lane, kept, dropped


@dataclass(frozen=True, slots=True)
class _Port:
    """A lane as one of its consumers sees it. `capacity` is None when nothing is ever dropped from it; `plain` is a lane of one
    producer from which nothing is: what lies there is as it should be."""

    number: int
    lane: str
    shared: bool
    capacity: int | None
    first: bool
    plain: bool

    def take(self, flight: Flight) -> list[Token]:
        """The records of this flight, in the order of their arrival.

        On a lane with several producers the record that passed fewer roles arrives first; among equals, that of the producer
        which the plan names first. What goes beyond the capacity is dropped.
        """
        tokens = flight.ports[self.number]
        if self.plain:
            return tokens
        if self.shared and len(tokens) > 1:
            tokens.sort(key=lambda token: (token.hops, token.rank))
        if self.capacity is not None and tokens:
            lost = max(0, len(tokens) - self.capacity)
            del tokens[self.capacity :]
            if self.first:
                flight.taken.append((self.lane, len(tokens), lost))
                flight.dropped += [self.lane] * lost
        return tokens


@dataclass(frozen=True, slots=True)
class _Out:
    """A lane as one of its producers sees it: the ports of its consumers, each of which gets a record of its own."""

    port: int
    others: tuple[int, ...]
    rank: int

    def put(self, flight: Flight, token: Token) -> None:
        """Copies are made here, before any consumer can have changed the record."""
        token.rank = self.rank
        for other in self.others:
            flight.ports[other].append(token.copy())
        flight.ports[self.port].append(token)


_Run = Callable[[Flight], None]


class Network:
    """The roles of a plan, ready to run. `steps` are those of its stages by id."""

    def __init__(self, plan: Plan, steps: Mapping[str, Step]) -> None:
        self._turns = [0] * len(plan.roles)  # the next way of each round robin
        self._remember = any(stage.capability for stage in plan.stages)
        self._places = {role.name: number for number, role in enumerate(plan.roles)}
        self._tallies = {name: Tally() for name in self._places}
        self._by_number = tuple(self._tallies.items())
        self._lanes: dict[str, LaneMetrics] = {}
        self._rules = {name: step.rules for name, step in steps.items() if step.rules is not None}
        drops = dict(plan.settings).get("on_full") == "drop"
        lanes = {lane.name: lane for lane in plan.lanes}
        ports: dict[tuple[str, str], _Port] = {}
        for lane in plan.lanes:
            capacity = lane.capacity if drops and lane.kind not in _LOSSLESS else None
            if capacity is not None:
                self._lanes[lane.name] = {"received": 0, "dropped": 0}
            for place, consumer in enumerate(lane.consumers):
                shared = len(lane.producers) > 1
                ports[lane.name, consumer] = _Port(
                    len(ports), lane.name, shared, capacity, place == 0, not shared and capacity is None
                )
        self._ports: tuple[tuple[Token, ...], ...] = ((),) * len(ports)  # what lies on each before a flight

        def out(lane: Lane, producer: str) -> _Out:
            first, *others = (ports[lane.name, consumer].number for consumer in lane.consumers)
            return _Out(first, tuple(others), lane.producers.index(producer))

        self._ingress = {name: out(lanes[name], OUTSIDE + INGRESS) for name in plan.ingress}
        self._egress = tuple(ports[name, OUTSIDE + EGRESS] for name in plan.egress)
        #: The roles in the plan's order: running each once, in this order, is one schedule of a flight.
        self.runs: tuple[_Run, ...] = tuple(
            self._run_of(
                number,
                role,
                [ports[lane, role.name] for lane in role.rx],
                [out(lanes[lane], role.name) for lane in role.tx],
                steps.get(role.name),
            )
            for number, role in enumerate(plan.roles)
        )

    def process(self, record: bytes, lane: str) -> Outcome:
        """Send one record through, role by role. Raises EffectFailed, and counts nothing, when an effect failed."""
        turns = self._turns[:] if self._remember else self._turns
        hits = [(rules, rules.hits[:]) for rules in self._rules.values()] if self._remember else ()
        flight = self.begin(record, lane)
        try:
            for run in self.runs:
                run(flight)
        except BaseException:
            self._turns[:] = turns
            for rules, before in hits:
                rules.hits[:] = before
            raise
        return self.finish(flight)

    def begin(self, record: bytes, lane: str) -> Flight:
        """A flight with the record on its ingress lane. Raises KeyError when `lane` is no ingress."""
        flight = Flight(self._ports)
        self._ingress[lane].put(flight, Token(Slot(record)))
        return flight

    def finish(self, flight: Flight) -> Outcome:
        """Count a flight in which every role has run, and answer what came of it, egress lanes by name."""
        emissions = [Emission(port.lane, token.slot.data()) for port in self._egress for token in port.take(flight)]
        passed = []
        # by the plan's order, whatever order the roles ran in
        flight.done.sort()
        for number, forwarded in flight.done:
            name, tally = self._by_number[number]
            tally.forwarded += forwarded
            if forwarded:
                passed.append(name)
        for refusal in flight.refusals:
            self._tallies[refusal.stage].refuse(refusal.code)
        for lane, kept, lost in flight.taken:
            counted = self._lanes[lane]
            counted["received"] += kept + lost
            counted["dropped"] += lost
        if len(flight.refusals) > 1:
            flight.refusals.sort(key=lambda refusal: self._places[refusal.stage])
        flight.dropped.sort()
        return Outcome(tuple(emissions), tuple(flight.refusals), tuple(passed), tuple(flight.dropped))

    def metrics(self) -> Metrics:
        """See Interpreter."""
        return {
            "stages": {name: tally.as_dict() for name, tally in self._tallies.items()},
            "lanes": {name: counted.copy() for name, counted in self._lanes.items()},
            "rules": {name: rules.hits[:] for name, rules in self._rules.items()},
        }

    def _run_of(self, number: int, role: PlanRole, rx: Sequence[_Port], tx: Sequence[_Out], step: Step | None) -> _Run:
        if role.kind == "merge":
            return _merge(number, rx, tx[0], by_arrival=role.policy == "arrival")
        if role.policy == "broadcast":
            return _broadcast(number, rx[0], tx)
        if role.policy == "round_robin":
            return _round_robin(number, rx[0], tx, self._turns)
        if role.policy == "hash":
            return _by_hash(number, role, rx[0], tx)
        return _stage(number, role.name, rx[0], tx[0], step)


def _stage(number: int, name: str, rx: _Port, tx: _Out, step: Step | None) -> _Run:
    """`step` None: a bridge, which changes nothing."""
    change = step.run if step is not None else None

    def run(flight: Flight) -> None:
        tokens = rx.take(flight)
        passed = 0
        for token in tokens:
            if change is not None:
                try:
                    change(token.slot)
                except Refused as refusal:
                    flight.refusals.append(Refusal(name, refusal.code, refusal.message))
                    continue
            token.hops += 1
            tx.put(flight, token)
            passed += 1
        if passed:
            flight.done.append((number, passed))

    return run


def _broadcast(number: int, rx: _Port, tx: Sequence[_Out]) -> _Run:
    first, *others = tx

    def run(flight: Flight) -> None:
        tokens = rx.take(flight)
        for token in tokens:
            token.hops += 1
            for out in others:
                out.put(flight, token.copy())
            first.put(flight, token)
        if tokens:
            flight.done.append((number, len(tokens)))

    return run


def _round_robin(number: int, rx: _Port, tx: Sequence[_Out], turns: list[int]) -> _Run:
    def run(flight: Flight) -> None:
        tokens = rx.take(flight)
        for token in tokens:
            token.hops += 1
            tx[turns[number]].put(flight, token)
            turns[number] = (turns[number] + 1) % len(tx)
        if tokens:
            flight.done.append((number, len(tokens)))

    return run


def _by_hash(number: int, role: PlanRole, rx: _Port, tx: Sequence[_Out]) -> _Run:
    path = tuple((role.hash_key or "").split("."))

    def run(flight: Flight) -> None:
        tokens = rx.take(flight)
        passed = 0
        for token in tokens:
            try:
                way = bucket_of(token.slot.value(), path, len(tx))
            except Refused as refusal:
                flight.refusals.append(Refusal(role.name, refusal.code, refusal.message))
                continue
            token.hops += 1
            tx[way].put(flight, token)
            passed += 1
        if passed:
            flight.done.append((number, passed))

    return run


def _merge(number: int, rx: Sequence[_Port], tx: _Out, *, by_arrival: bool) -> _Run:
    def run(flight: Flight) -> None:
        tokens = [token for port in rx for token in port.take(flight)]
        if by_arrival:
            tokens.sort(key=lambda token: token.hops)  # stable: among equals the order of the lanes
        for token in tokens:
            token.hops += 1
            tx.put(flight, token)
        if tokens:
            flight.done.append((number, len(tokens)))

    return run
