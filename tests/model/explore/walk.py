"""Breadth first through every state of a setting."""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.explore.model import Broken, Setting, World, check, check_step, ended, events, first


@dataclass(frozen=True)
class Walked:
    """How far a walk came: `complete` if there was nothing more to visit."""

    states: int
    steps: int
    complete: bool


def explore(setting: Setting, *, limit: int) -> Walked:
    """Visit every state that can be reached in `setting`, at most `limit`, and check what must hold in each.

    A state from which what happens by itself (workers, clocks, agents that carry out their directives) leads nowhere is broken,
    too. Raises Broken with the shortest way to it.
    """
    start = first(setting)
    seen: dict[World, int] = {start: 0}
    order = [start]
    came: list[tuple[int, str]] = [(0, "")]
    by_itself: list[list[int]] = [[]]  # for each state those that lead to it by themselves
    opened = steps = 0

    def way(to: int) -> str:
        names = []
        while to:
            to, name = came[to]
            names.append(name)
        return " · ".join(reversed(names))

    while opened < len(order) and len(order) < limit:
        world = order[opened]
        name = ""
        try:
            for name, fair, after in events(setting, world):
                steps += 1
                check_step(world, after)
                at = seen.get(after)
                if at is None:
                    check(setting, after)
                    at = seen[after] = len(order)
                    order.append(after)
                    came.append((opened, name))
                    by_itself.append([])
                if fair:
                    by_itself[at].append(opened)
        except Broken as broken:
            raise Broken(f"{broken} (after: {way(opened)} · then {name or 'the next'})") from None
        opened += 1
    complete = opened == len(order)
    if complete:
        good = {at for at, world in enumerate(order) if ended(world)}
        reached = list(good)
        while reached:
            for before in by_itself[reached.pop()]:
                if before not in good:
                    good.add(before)
                    reached.append(before)
        stuck = next((at for at in range(len(order)) if at not in good), None)
        if stuck is not None:
            raise Broken(f"nothing leads on by itself from {order[stuck]} (after: {way(stuck)})")
    return Walked(len(order), steps, complete)
