"""Becoming an agent of an environment."""

from __future__ import annotations

import re
import socket
import time
import uuid
from dataclasses import dataclass
from typing import Any

from apps.runtime.agent import VERSION
from apps.runtime.agent.client import BadAddress, Client, Refused, Unreachable
from apps.runtime.agent.state import State, StateError
from apps.runtime.faults import fault_point
from apps.runtime.trust import accept_keyset

_ENVIRONMENT_URL = re.compile(
    r"\A(https?://[^/?#]+(?:/[^?#]*)?)(/orgs/[0-9a-f-]{36}/projects/[0-9a-f-]{36}/environments/([0-9a-f-]{36}))/?\Z"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is."""

    base_url: str
    agent_id: str
    api_key: str
    org_id: str
    project_id: str
    environment_id: str
    posture: str
    heartbeat_seconds: float

    def __repr__(self) -> str:
        return f"Identity(agent_id={self.agent_id!r})"


def split_environment_url(url: str) -> tuple[str, str, str]:
    """(origin and prefix, path of the environment below it, environment id). Raises BadAddress."""
    match = _ENVIRONMENT_URL.match(url)
    if match is None:
        raise BadAddress("--environment-url looks like https://host/api/v1/orgs/…/projects/…/environments/…")
    return match.group(1), match.group(2), match.group(3)


def identity(state: State) -> Identity | None:
    """Who the state folder says this agent is; None before enrollment."""
    value = state.read("agent.json")
    return Identity(**value) if value else None


def save_identity(state: State, value: Identity) -> None:
    """Keep the identity, its key included, in a file only its owner reads."""
    state.write("agent.json", {name: getattr(value, name) for name in Identity.__dataclass_fields__})


def enroll(state: State, client: Client, path: str, token: str, name: str | None) -> Identity:
    """Enroll with a one-time token; repeats itself under one idempotency key until an answer arrives.

    Raises Refused when the control plane says no, TrustError when the key set it gives does not bear itself out.
    """
    pending = state.read("enrolling.json") or {"key": str(uuid.uuid4())}
    state.write("enrolling.json", pending)
    body: dict[str, Any] = {"hostname": socket.gethostname()[:253], "version": VERSION}
    if name:
        body["name"] = name
    pause = 0.5
    while True:
        try:
            answer = client.call(
                "POST", f"{path}/agents", token=token, body=body, headers={"Idempotency-Key": pending["key"]}
            ).json()
            break
        except Unreachable as error:
            time.sleep(error.retry_after or pause)
            pause = min(pause * 2, 30)
    fault_point("agent.enroll.answered")
    keys = accept_keyset(None, answer["signing_keys"]["envelopes"])
    if keys.org_id != answer["org_id"]:
        raise StateError("the key set is of another organization than the answer says")
    me = Identity(
        base_url=client.base_url,
        agent_id=answer["agent_id"],
        api_key=answer["api_key"],
        org_id=answer["org_id"],
        project_id=answer["project_id"],
        environment_id=answer["environment_id"],
        posture=answer["posture"],
        heartbeat_seconds=float(answer["heartbeat_seconds"]),
    )
    state.trust(keys)
    fault_point("agent.enroll.keys_kept")
    save_identity(state, me)
    fault_point("agent.enroll.identity_kept")
    state.remove("enrolling.json")
    return me


__all__ = ["Identity", "Refused", "enroll", "identity", "save_identity", "split_environment_url"]
