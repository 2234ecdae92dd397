"""Becoming an agent of an environment."""

from __future__ import annotations

import re
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from apps.runtime.agent import VERSION
from apps.runtime.agent.client import BadAddress, Client, Refused, Unreachable
from apps.runtime.agent.state import State, StateError
from apps.runtime.faults import fault_point
from apps.runtime.trust import accept_keyset

MOST_WARNINGS = 5
_ENVIRONMENT_URL = re.compile(
    r"\A(https?://[^/?#]+(?:/[^?#]*)?)(/orgs/[0-9a-f-]{36}/projects/[0-9a-f-]{36}/environments/([0-9a-f-]{36}))/?\Z"
)


POSTURES = ("dev", "staging", "prod")
MAX_KEY_LENGTH = 512


def as_uuid(value: object) -> str:
    """`value` if it is a UUID as it is written (lower case, four hyphens). ValueError for anything else."""
    if not isinstance(value, str) or str(uuid.UUID(value)) != value:
        raise ValueError("this is not a UUID")
    return value


def as_key(value: object) -> str:
    """`value` if it can be sent as a credential: 1 to 512 visible ASCII characters. ValueError for anything else."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_KEY_LENGTH or not all("!" <= c <= "~" for c in value):
        raise ValueError("this is not a key")
    return value


def as_seconds(value: object, least: float, most: float) -> float:
    """`value` if it is a number between the two. ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError("this is not a number of seconds")
    return float(value)


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
    """The agent's identity as kept in the state folder; None before enrollment."""
    value = state.read("agent.json")
    if value is None:
        return None
    try:
        return Identity(**value)
    except TypeError:
        raise StateError(f"{state.root / 'agent.json'} is damaged") from None


def save_identity(state: State, value: Identity) -> None:
    """Keep the identity, its key included, in a file only its owner reads."""
    state.write("agent.json", {name: getattr(value, name) for name in Identity.__dataclass_fields__})


def enroll(
    state: State,
    client: Client,
    path: str,
    token: str,
    name: str | None,
    log: Callable[[str], None] = lambda text: None,
) -> Identity:
    """Enroll with a one-time token; repeats itself under one idempotency key until an answer arrives.

    An answer that is not an enrollment's, as of a proxy in between, is none. Raises Refused when the control plane refuses,
    TrustError when the key set that it gives does not verify.
    """
    pending = state.recall("enrolling.json", lambda value: {"key": as_uuid(value["key"])}) or {"key": str(uuid.uuid4())}
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
            me, envelopes = _read(answer, client.base_url)
            break
        except Unreachable as error:
            time.sleep(error.retry_after or pause)
            pause = min(pause * 2, 30)
    fault_point("agent.enroll.answered")
    keys = accept_keyset(None, envelopes)
    if keys.org_id != me.org_id:
        raise StateError("the key set is of another organization than the answer says")
    state.trust(keys)
    fault_point("agent.enroll.keys_kept")
    save_identity(state, me)
    fault_point("agent.enroll.identity_kept")
    state.remove("enrolling.json")
    warnings = answer.get("warnings")
    for warning in warnings[:MOST_WARNINGS] if isinstance(warnings, list) else ():
        log(f"the control plane warns: {str(warning)[:300]!a}")
    return me


def _read(answer: object, base_url: str) -> tuple[Identity, list[object]]:
    """Who this is, and the key set's envelopes, of an enrollment's answer. Unreachable when it is none."""
    try:
        if not isinstance(answer, dict) or answer["posture"] not in POSTURES:
            raise ValueError("the posture is missing")
        envelopes = answer["signing_keys"]["envelopes"]
        if not isinstance(envelopes, list) or not envelopes:
            raise ValueError("the key set is missing")
        me = Identity(
            base_url=base_url,
            agent_id=as_uuid(answer["agent_id"]),
            api_key=as_key(answer["api_key"]),
            org_id=as_uuid(answer["org_id"]),
            project_id=as_uuid(answer["project_id"]),
            environment_id=as_uuid(answer["environment_id"]),
            posture=answer["posture"],
            heartbeat_seconds=as_seconds(answer["heartbeat_seconds"], 1, 3600),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise Unreachable(f"the answer is not an enrollment's: {type(error).__name__}") from None
    return me, envelopes


__all__ = [
    "Identity",
    "Refused",
    "as_key",
    "as_seconds",
    "as_uuid",
    "enroll",
    "identity",
    "save_identity",
    "split_environment_url",
]
