"""Long polls that wait on the event loop without holding a thread."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from apps.core import wake
from apps.core.waits import Recheck, RecheckResult, Wait
from byteor.server.limits import Limits

log = structlog.get_logger(__name__)


class Waits:
    """All waits of this process for channels of `apps.core.wake`."""

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self._limits = limits
        self._loop = loop
        # by channel: the future of each wait, and whether its check is already due
        self._waiting: defaultdict[str, dict[asyncio.Future[bool], bool]] = defaultdict(dict)
        self._holders: Counter[str] = Counter()
        self._stopping = False
        wake.subscribe(self._on_notification)

    def __len__(self) -> int:
        return self._holders.total()

    def enter(self, holder: str) -> bool:
        """Count a wait of `holder` until `leave`. False if the holder or the process has reached its limit."""
        if self._holders[holder] >= self._limits.waits_per_holder or len(self) >= self._limits.waits:
            return False
        self._holders[holder] += 1
        return True

    def leave(self, holder: str) -> None:
        """End a wait of `holder`."""
        self._holders[holder] -= 1
        if not self._holders[holder]:
            del self._holders[holder]

    async def wait_until_notified(self, wait: Wait, deadline: float) -> bool:
        """Wait for a notification. True if the channel was notified since the check; False at the deadline (loop time) or stop."""
        if self._stopping:
            return False
        notified: asyncio.Future[bool] = self._loop.create_future()
        end = self._loop.call_at(deadline, _settle, notified, False)
        self._waiting[wait.channel][notified] = False
        watch = wake.Watch()
        try:
            # notified between the view's check and this registration: there will be no further notification
            if watch.notified_since(wait.channel, wait.seen):
                return True
            return await notified
        finally:
            watch.close()
            end.cancel()
            others = self._waiting[wait.channel]
            others.pop(notified, None)
            if not others:
                del self._waiting[wait.channel]

    def stop(self) -> None:
        """End all present and future waits immediately."""
        self._stopping = True
        wake.unsubscribe(self._on_notification)
        for waiting in list(self._waiting.values()):
            for notified in waiting:
                _settle(notified, False)

    def _on_notification(self, channel: str | None) -> None:
        """Handle a notification, in the listener's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._notify, channel)

    def _notify(self, channel: str | None) -> None:
        if channel is not None:
            for notified in self._waiting.get(channel, ()):
                _settle(notified, True)
            return
        # anything may have changed: all waits check, spread over time
        spread = self._limits.wake_all_seconds * min(1.0, len(self) / 500)
        for waiting in self._waiting.values():
            for notified, due in waiting.items():
                if not due:
                    waiting[notified] = True
                    self._loop.call_later(random.uniform(0, spread), _settle, notified, True)  # noqa: S311 - spreads load


def _settle(notified: asyncio.Future[bool], value: bool) -> None:
    if not notified.done():
        notified.set_result(value)


class Looks:
    """Checks woken waits in batches, each in one thread. Waits that are woken during a batch form the next one."""

    def __init__(
        self, most: int, in_thread: Callable[[Recheck, Sequence[Any]], Awaitable[Sequence[bytes | RecheckResult]]]
    ) -> None:
        self._most = most
        self._in_thread = in_thread
        self._due: defaultdict[Recheck, list[tuple[Any, asyncio.Future[bytes | RecheckResult]]]] = defaultdict(list)
        self._tasks: dict[Recheck, asyncio.Task[None]] = {}

    async def again(self, recheck: Recheck, subject: Any) -> bytes | RecheckResult:
        """The result of `recheck` for `subject`; when it fails, the view is called instead."""
        found: asyncio.Future[bytes | RecheckResult] = asyncio.get_running_loop().create_future()
        self._due[recheck].append((subject, found))
        if recheck not in self._tasks:
            self._tasks[recheck] = asyncio.create_task(self._look(recheck))
        return await found

    async def _look(self, recheck: Recheck) -> None:
        try:
            while due := self._due.pop(recheck, None):
                for start in range(0, len(due), self._most):
                    await self._run(recheck, due[start : start + self._most])
        finally:
            del self._tasks[recheck]

    async def _run(self, recheck: Recheck, due: Sequence[tuple[Any, asyncio.Future[bytes | RecheckResult]]]) -> None:
        results: Sequence[bytes | RecheckResult] = [RecheckResult.CALL_VIEW] * len(due)
        try:
            results = await self._in_thread(recheck, [subject for subject, _ in due])
        except Exception as error:  # the view is called, and reports the error
            log.warning("batch check of waits failed", error=type(error).__name__)
        finally:
            for (_, found), result in zip(due, results, strict=True):
                if not found.done():
                    found.set_result(result)
