"""JSON documents of agents and enrollment tokens: what each answer holds, and how it is made of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from apps.agents.models import Agent, EnrollmentToken
from apps.api.documents import document
from apps.api.etags import digest_tag


class AgentDocument(TypedDict):
    """An agent. `labels` select it for deployments; `reported_labels` are what its host claims."""

    id: str
    name: str
    labels: Mapping[str, str]
    reported_labels: Mapping[str, str]
    hostname: str
    status: str
    reported_status: str
    healthy: bool | None
    health_detail: str
    metrics: Mapping[str, object]
    version: str
    last_seen_at: str | None
    running: Mapping[str, object] | None
    key_set_version: int
    directive_seq: int
    revoked_at: str | None
    created_at: str
    updated_at: str


class AgentWarningDocument(TypedDict):
    """A warning about an agent."""

    code: str
    detail: str


class AgentDetail(AgentDocument):
    """One agent, with warnings."""

    warnings: list[AgentWarningDocument]


class EnrollmentTokenDocument(TypedDict):
    """An enrollment token, without its text."""

    id: str
    name: str
    prefix: str
    scope: str
    labels: Mapping[str, str]
    max_uses: int
    uses: int
    expires_at: str
    last_used_at: str | None
    created_by: str | None
    created_at: str


class CreatedEnrollmentToken(EnrollmentTokenDocument):
    """An enrollment token, with its text."""

    token: str


class EnrolledDocument(TypedDict):
    """A new agent, with its key and the keys that it trusts."""

    agent_id: str
    name: str
    api_key: str
    org_id: str
    project_id: str
    environment_id: str
    posture: str
    signing_keys: Mapping[str, object]
    heartbeat_seconds: float
    warnings: list[str]


class DirectiveDocument(TypedDict):
    """A signed directive with a plain copy of its content, and the path for the next one."""

    desired: Mapping[str, object]
    url: NotRequired[str | None]
    heartbeat_seconds: float
    key_set_version: int


class ReportDocument(TypedDict):
    """An accepted status report."""

    agent_id: str
    deployment_id: str
    status: str


class KeySetDocument(TypedDict):
    """The newest key set, and the envelopes of all versions above the agent's."""

    version: int
    keys: list[Mapping[str, object]]
    envelopes: list[Mapping[str, object]]


class RotatedKeyDocument(TypedDict):
    """A new key of an agent."""

    agent_id: str
    api_key: str


class ReleaseDocument(TypedDict):
    """The signed offer of an agent program."""

    envelope: Mapping[str, object]


def agent_document(agent: Agent) -> AgentDocument:
    """Return the API representation of an agent."""
    return document(AgentDocument, agent)


def agent_etag(agent: Agent, body: AgentDocument) -> str:
    """`<rev>.<digest of the representation>`: what the host reports changes the second part only."""
    return f"{agent.rev}.{digest_tag(body)[:16]}"


def enrollment_token_document(token: EnrollmentToken) -> EnrollmentTokenDocument:
    """Return the API representation of an enrollment token, without its text."""
    return document(EnrollmentTokenDocument, token, prefix=token.public_id, scope="agent:enroll")
