"""The peer of `bench.waits`: an asyncio server that waits for the same notifications and, for each answer, does one indexed read and
one committed update on the same database and signs one directive (Ed25519). No framework, no authentication."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import psycopg

from apps.runtime import trust

CONNECTIONS = 8


async def serve(port: int, url: str) -> None:
    """Answer `GET /AGENT-ID` when `agent:AGENT-ID` is notified."""
    private = trust.generate_private_key()
    signer = trust.Signer(trust.kid_of(trust.public_key(private)), private)
    free: asyncio.Queue[psycopg.AsyncConnection[tuple[object, ...]]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await psycopg.AsyncConnection.connect(url, autocommit=True))
    waiting: dict[str, asyncio.Event] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        agent_id = head.split(b" ", 2)[1][1:].decode()
        event = waiting[agent_id] = asyncio.Event()
        await event.wait()
        connection = await free.get()
        try:
            row = await (
                await connection.execute(
                    "SELECT environment_id, directive_seq FROM agents_agent WHERE id = %s", (agent_id,)
                )
            ).fetchone()
            assert row is not None
            now = int(time.time() * 1000)
            await connection.execute("UPDATE agents_agent SET directive_seq = %s WHERE id = %s", (now, agent_id))
        finally:
            free.put_nowait(connection)
        directive = trust.Directive(
            environment_id=str(row[0]),
            agent_id=agent_id,
            directive="none",
            deployment_id=None,
            for_deployment_id=None,
            bundle_sha256=None,
            sequence=None,
            directive_seq=now,
            issued_at=now,
            expires_at=now + 600_000,
        )
        body = json.dumps({"desired": {"envelope": trust.sign_directive(directive, signer)}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def listen() -> None:
        hearing = await psycopg.AsyncConnection.connect(url, autocommit=True)
        await hearing.execute("LISTEN byteor")
        async for message in hearing.notifies():
            event = waiting.get(message.payload.removeprefix("agent:"))
            if event is not None:
                event.set()

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listen())
        tasks.create_task(server.serve_forever())


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), os.environ["BYTEOR_CLOUD_DATABASE_URL"]))
