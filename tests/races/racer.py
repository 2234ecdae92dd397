"""One racing process: a Django of its own on the database under test, its requests sent from threads at one moment.

Reads a race (a JSON line: a list of calls) from standard input, prints `ready`, waits for the line `go`, makes every call in
a thread with a connection of its own, all at once, and answers with a JSON line of results in order. Ends with its input.

A call is `{"method", "path", "body"?, "token", "headers"?}`: a request through all middlewares, or `{"do": name}`: a thing that
a worker or a chore does (`DOES`), or `{"shift": seconds}`: this process' clock moves on. With any of them `{"wait": seconds}`
after `go`, and `{"after": n}`: not before so many of this process' other calls were answered.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import django


def _drain() -> int:
    from apps.jobs.runner import drain

    return drain()


def _expire() -> int:
    from apps.approvals.services import expire_due
    from apps.core import clock

    return expire_due(clock.now())


def _release() -> int:
    from apps.jobs.services import release_expired

    return release_expired()


def _time_out() -> int:
    from apps.core import clock
    from apps.deployments.services import time_out_silent_targets

    return time_out_silent_targets(clock.now())


DOES: dict[str, Callable[[], int]] = {
    "drain": _drain,
    "expire": _expire,
    "release": _release,
    "time_out": _time_out,
}


def make(call: dict[str, Any], shift: Callable[[float], None]) -> dict[str, Any]:
    """Make one call; its result as JSON."""
    if "do" in call:
        return {"did": DOES[call["do"]]()}
    if "shift" in call:
        shift(call["shift"])
        return {"shifted": call["shift"]}
    from tests.support import Caller

    caller = Caller(call["token"])
    answer = caller._json(call["method"], call["path"], call.get("body"), call.get("headers") or {})
    body = b"".join(answer.streaming_content) if answer.streaming else answer.content
    try:
        content = json.loads(body) if body else None
    except ValueError:
        content = None
    return {"status": answer.status_code, "body": content, "headers": dict(answer.headers)}


def race(calls: list[dict[str, Any]], started: threading.Event, shift: Callable[[float], None]) -> list[Any]:
    """Make `calls` when `started` is set, each in a thread."""
    from django.db import connection

    results: list[Any] = [None] * len(calls)
    answered = threading.Semaphore(0)

    def run(index: int) -> None:
        try:
            connection.ensure_connection()
            started.wait()
            time.sleep(calls[index].get("wait", 0))
            for _ in range(calls[index].get("after", 0)):
                answered.acquire()
            results[index] = make(calls[index], shift)
        except BaseException as error:
            results[index] = {"error": f"{type(error).__name__}: {error}"}
        finally:
            answered.release()
            connection.close()

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        os._exit(1)  # the process that started this has ended
    started.set()
    for thread in threads:
        thread.join()
    return results


def main() -> None:
    """Race until standard input ends."""
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")
    django.setup()
    import time_machine
    from django.db import connection
    from django.test.utils import setup_test_environment

    setup_test_environment()
    print("here", flush=True)
    for line in sys.stdin:
        traveller = time_machine.travel(time.time(), tick=True)
        with traveller as clock:
            print(json.dumps(race(json.loads(line), threading.Event(), clock.shift)), flush=True)
        connection.close()


if __name__ == "__main__":
    main()
