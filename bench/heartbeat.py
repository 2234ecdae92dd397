"""The heartbeat, with authentication, tenant scope and every middleware, against a plain Django view and the raw driver.

Ours: agents in steady state, each heartbeat with metrics that changed, through the whole application, with the heartbeat cache and
with it switched off. With it, their state is written by the flush thread, in the same process and in the time that is
measured. The plain view: a Django application without
any middleware whose view gets the agent's row by the ORM, updates it by the ORM (committed) and answers JSON. The raw driver: one
SELECT and one UPDATE, committed, by psycopg on an open connection, no HTTP at all.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import threading
import time
import uuid
from typing import Any

import psycopg

from bench.control_plane import Application, bare, control_plane, log_in_a_file
from bench.measure import report, seconds_each

AGENTS = 400
ROUNDS = 11
TIMES = 400


def _enroll(app: Application, count: int) -> list[tuple[str, str]]:
    """(agent id, key) of enrolled agents in steady state."""
    from apps.access import services as access
    from apps.access.principals import person_principal
    from tests.support import make_tenant

    tenant = make_tenant()
    token = access.create_token(actor=person_principal(tenant.people["bob"]), name="bench").text.reveal()
    where = f"/api/v1{tenant.path(tenant.dev)}"
    made = []
    for _ in range(count):
        # a token each, and straight to the service: the enrollment throttle is not what is measured
        given = app.json("POST", f"{where}/enrollment-tokens", {}, token, 201)["token"]
        made.append(_enrolled(given))
    return made


def _enrolled(token: str) -> tuple[str, str]:
    from apps.access import tokens
    from apps.agents.services import enroll, usable_token
    from apps.api.authentication.agents import enrollment_principal

    row = usable_token(tokens.parse(token).sha256, idempotency_key=None)
    done: Any = enroll(
        actor=enrollment_principal(row),
        token=row,
        idempotency_key=None,
        name=None,
        hostname="host",
        reported_labels={},
        version="1.0",
    )
    return str(done.agent.pk), done.api_key.reveal()


def main() -> None:
    """Measure and print."""
    with control_plane() as url, log_in_a_file():
        _measure(url)


def _measure(url: str) -> None:
    from django.db import connection
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    from apps.agents.heartbeat_cache import close_heartbeat_cache, flush_last_seen
    from apps.agents.models import Agent
    from apps.core import clock
    from byteor.wsgi import application

    ours = Application(application)
    agents = itertools.cycle(_enroll(ours, AGENTS))
    counter = itertools.count()

    def heartbeat() -> None:
        agent_id, key = next(agents)
        body = json.dumps(
            {
                "status": "running",
                "version": "1.0",
                "running": None,
                "key_set_version": 1,
                "health": {"ok": True, "detail": ""},
                "metrics": {"stages": {"redact": {"in": next(counter), "out": 5}}},
            }
        ).encode()
        status, _ = ours.call("POST", f"/api/v1/agents/{agent_id}/heartbeat", body, key)
        if status != 200:
            raise SystemExit(f"heartbeat: {status}")

    def view(request: HttpRequest, agent_id: uuid.UUID) -> JsonResponse:
        json.loads(request.body)
        connection.health_check_done = True  # ours asks the connection how it is, the baseline need not
        agent = Agent.objects.get(pk=agent_id)
        Agent.objects.filter(pk=agent.pk).update(last_seen_at=clock.now())
        return JsonResponse({"id": str(agent.pk), "name": agent.name})

    plain_app = bare([path("plain/<uuid:agent_id>", view)], [])
    body = json.dumps({"status": "running"}).encode()

    def plain() -> None:
        agent_id, _ = next(agents)
        if plain_app.call("POST", f"/plain/{agent_id}", body)[0] != 200:
            raise SystemExit("the plain view failed")

    raw = psycopg.connect(url, autocommit=True)

    def driver() -> None:
        agent_id, _ = next(agents)
        raw.execute("SELECT id, name, last_seen_at FROM agents_agent WHERE id = %s", (agent_id,)).fetchone()
        raw.execute("UPDATE agents_agent SET last_seen_at = %s WHERE id = %s", (dt.datetime.now(dt.UTC), agent_id))

    def compare(name: str, wanted: str) -> None:
        for _ in range(3):
            for _ in range(AGENTS):
                heartbeat()
            time.sleep(0.3)
        seconds_each(plain, 50), seconds_each(driver, 50)
        pairs_plain, pairs_driver = [], []
        for _ in range(ROUNDS):
            mine = seconds_each(heartbeat, TIMES)
            theirs, bare_driver = seconds_each(plain, TIMES // 4), seconds_each(driver, TIMES // 4)
            pairs_plain.append((mine, theirs))
            pairs_driver.append((mine, bare_driver))
        report(f"{name} / plain view, one ORM get + update", pairs_plain, wanted=wanted)
        report(f"{name} / psycopg alone, one select + update", pairs_driver)
        _at_once(heartbeat, plain, wanted)

    compare("heartbeat", "<= 0.25")
    flushed = _flush_cost(flush_last_seen, next(agents)[0])
    print(f"{'one batch of 1,000 agents, written':52} {flushed * 1000:6.1f} ms", flush=True)
    close_heartbeat_cache()
    compare("without cache", "<= 1.3")
    raw.close()


def _flush_cost(flush_last_seen: Any, agent_id: str) -> float:
    """Seconds to write the last heartbeats of 1,000 agents in one batch."""
    from django.utils import timezone

    from apps.agents.heartbeat_cache import queue_last_seen
    from apps.agents.models import Agent, AgentKey
    from apps.agents.services import Heartbeat

    template = Agent.objects.get(pk=agent_id)
    rows = [
        Agent(environment_id=template.environment_id, name=f"more-{n}", last_seen_at=timezone.now())
        for n in range(1000)
    ]
    Agent.objects.bulk_create(rows)
    flush_last_seen()
    heartbeat = Heartbeat("running", "1.0", None, 1, metrics={"stages": {"redact": {"in": 5, "out": 5}}})
    for row in rows:
        queue_last_seen(AgentKey(agent=row), heartbeat)
    began = time.perf_counter()
    flush_last_seen()
    return time.perf_counter() - began


def _at_once(heartbeat: Any, plain: Any, wanted: str, threads: int = 4, seconds: float = 2.0) -> None:
    """Both from several threads of one process, as a server runs them."""

    def rate(work: Any) -> float:
        stop = time.perf_counter() + seconds
        done = [0] * threads

        def run(index: int) -> None:
            from django.db import connection

            while time.perf_counter() < stop:
                work()
                done[index] += 1
            connection.close()

        crew = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
        began = time.perf_counter()
        for each in crew:
            each.start()
        for each in crew:
            each.join()
        return sum(done) / (time.perf_counter() - began)

    pairs = [(1 / rate(heartbeat), 1 / rate(plain)) for _ in range(3)]
    report(f"the same from {threads} threads", pairs, wanted=wanted)


if __name__ == "__main__":
    main()
