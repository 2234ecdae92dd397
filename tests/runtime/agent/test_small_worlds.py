"""Every short order of steps, and many long ones, that a writer, a rotation and an agent can take, in memory.

What was written whole comes out, in order, once; again only when it was out as the agent was killed; nothing else ever.
`make soak` tries longer ones and more.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.runtime.agent.small_world import STEPS, World

MOST_STEPS = int(os.environ.get("BYTEOR_SOAK_STEPS", "4"))
WORLDS = int(os.environ.get("BYTEOR_SOAK_WORLDS", "400"))
LONG = 30
ROTATIONS = "wrcdltkS"


def _problem(steps: str, *, tick: int, linked: bool, quiet_seconds: float) -> str | None:
    """What is wrong after these steps; None when one of them is not possible."""
    world = World(tick=tick, linked=linked, quiet_seconds=quiet_seconds)
    return world.problem() if all(world.do(step) for step in steps) else None


@pytest.mark.parametrize("quiet_seconds", [0.0, 60.0])
@pytest.mark.parametrize("linked", [False, True])
def test_every_short_order_of_steps_brings_each_record_out_once_and_in_order(
    linked: bool, quiet_seconds: float
) -> None:
    """Where the clock of the file system is so slow that every other step falls in the same moment as the one before it."""
    tried, ahead = 0, [""]
    while ahead:
        steps = ahead.pop()
        problem = _problem(steps, tick=2, linked=linked, quiet_seconds=quiet_seconds)
        if problem is None:
            continue
        assert not problem, f"{steps}: {problem}"
        tried += 1
        if len(steps) < MOST_STEPS:
            ahead += [steps + step for step in ROTATIONS]
    assert tried > 2**MOST_STEPS


@pytest.mark.parametrize("linked", [False, True])
def test_long_orders_of_steps_bring_each_record_out_once_and_in_order(linked: bool) -> None:
    for number in range(WORLDS):
        dice = random.Random(number)
        tick, quiet_seconds = dice.choice([1, 2, 5]), dice.choice([0.0, 60.0])
        world, steps = World(tick=tick, linked=linked, quiet_seconds=quiet_seconds), ""
        while len(steps) < LONG:
            step = dice.choice(list(STEPS))
            steps += step if world.do(step) else ""
        problem = world.problem()
        assert not problem, f"{number}: {steps} (tick {tick}, {quiet_seconds} s): {problem}"


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param("dkWrhm", id="an-empty-file-that-was-removed-and-a-later-one-with-its-inode"),
        pytest.param("dkmwomw", id="as-before-with-short-records"),
        pytest.param("dhmkowc", id="as-before-and-the-later-one-is-a-copy"),
        pytest.param("dW1sc", id="the-copy-of-what-was-read-has-the-inode-of-an-empty-file-that-was-removed"),
        pytest.param("w1cfdk", id="removed-while-the-position-could-not-be-kept"),
        pytest.param("dse", id="another-file-has-the-inode-of-an-empty-one-that-was-removed"),
        pytest.param("wtcw", id="emptied-and-written-again-to-the-same-length-in-the-same-moment"),
    ],
)
@pytest.mark.parametrize("quiet_seconds", [0.0, 60.0])
@pytest.mark.parametrize("tick", [1, 2, 100])
def test_these_orders_of_steps_once_lost_repeated_or_misplaced_a_record(
    steps: str, tick: int, quiet_seconds: float
) -> None:
    assert _problem(steps, tick=tick, linked=False, quiet_seconds=quiet_seconds) == ""
