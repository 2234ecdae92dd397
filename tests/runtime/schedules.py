"""A graph's flights under schedules made at random, against the interpreter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

from apps.runtime.interpreter import Interpreter
from apps.runtime.network import Flight, Network
from apps.runtime.ops import Op, build_step
from apps.runtime.outcome import Outcome
from apps.runtime.spec import Plan
from tests.runtime.interp.test_effects import RecordedEffects
from tests.runtime.op_examples import settings_for
from tests.runtime.specs import graph_plan


def _any_schedule(plan: Plan, network: Network, given: Sequence[tuple[bytes, str]], random: Random) -> list[Outcome]:
    """All flights at once; whichever role is ready in whichever flight may be the next to run."""
    place = {role.name: number for number, role in enumerate(plan.roles)}
    before = {
        place[b.waiter]: {place[n] for n in b.waits_for if n in place} for b in plan.barriers if b.waiter in place
    }
    flights: list[Flight] = [network.begin(record, lane) for record, lane in given]
    done: list[set[int]] = [set() for _ in flights]
    left = {(at, role) for at in range(len(flights)) for role in range(len(plan.roles))}
    while left:
        ready = sorted(
            (at, role) for at, role in left if before[role] <= done[at] and (at == 0 or role in done[at - 1])
        )
        at, role = random.choice(ready)
        network.runs[role](flights[at])
        done[at].add(role)
        left.remove((at, role))
    return [network.finish(flight) for flight in flights]


def check_any_schedule(text: str, came: Sequence[bytes], random: Random) -> list[Outcome]:
    """Whatever the schedule, the same comes out of the graph `text`; the outcomes."""
    plan = graph_plan(text)
    stages = settings_for(plan)
    given = [(record, plan.ingress[number % len(plan.ingress)]) for number, record in enumerate(came)]
    runner = Interpreter(plan, stages, RecordedEffects())
    expected = [runner.process(record, lane) for record, lane in given]
    steps = {
        item.id: build_step(Op(item.op, item.argument), stages[item.id], RecordedEffects())[0] for item in plan.stages
    }
    network = Network(plan, {name: step for name, step in steps.items() if step is not None})
    assert _any_schedule(plan, network, given, random) == expected
    assert network.metrics() == runner.metrics()
    for outcome in expected:
        assert {emission.lane for emission in outcome.emissions} <= set(plan.egress)
    again = Interpreter(Plan.from_dict(json.loads(json.dumps(plan.as_dict()))), stages, RecordedEffects())
    assert [again.process(record, lane) for record, lane in given] == expected
    return expected
