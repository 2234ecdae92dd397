"""How everything here is measured: ours and its baseline in turn, in one run, as ratios. Nothing here is a test."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds_each(work: Callable[[], object], times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The mean seconds of one call, over `times` calls. For what only computes, `time.process_time` leaves other processes out."""
    start = clock()
    for _ in range(times):
        work()
    return (clock() - start) / times


def report(name: str, pairs: list[tuple[float, float]], *, wanted: str = "") -> float:
    """Print and return the median of ours / baseline over `pairs` of (ours, baseline) seconds; `wanted` is printed with it."""
    ratios = sorted(ours / baseline for ours, baseline in pairs)
    median = statistics.median(ratios)
    micro = statistics.median(ours for ours, _ in pairs) * 1e6
    note = f"   wanted {wanted}" if wanted else ""
    print(f"{name:52} {median:6.2f} x   [{ratios[0]:.2f} .. {ratios[-1]:.2f}]   {micro:10.1f} us{note}", flush=True)
    return median


def ratio(
    name: str,
    ours: Callable[[], object],
    baseline: Callable[[], object],
    times: int,
    rounds: int = 9,
    *,
    wanted: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measure ours and the baseline in turn, `rounds` times `times` calls each, and report the ratio of their times."""
    ours(), baseline()
    pairs = [(seconds_each(ours, times, clock), seconds_each(baseline, times, clock)) for _ in range(rounds)]
    return report(name, pairs, wanted=wanted)
