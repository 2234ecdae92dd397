"""Heartbeats, with the cache or without it."""

from __future__ import annotations

from apps.agents.heartbeat_cache import flush, keys
from apps.agents.models import AgentKey
from apps.agents.services.directives import NumberedDirective, number_directive
from apps.agents.services.heartbeats import Heartbeat, is_unchanged, record_heartbeat


def receive_heartbeat(key: AgentKey, heartbeat: Heartbeat, *, seen_seq: int) -> NumberedDirective:
    """Store a heartbeat of the agent of `key` and return the agent's directive.

    `key` is as its authentication returned it. `seen_seq` is the number of the last directive that the agent has seen, 0
    if it sent none: a cached directive that is older is not returned. Call it outside transactions. Raises NotFound if
    the agent was deleted.
    """
    agent = key.agent
    # a cached row may be as old as the notifications; the agent has then seen a newer number
    is_current = agent.directive_seq >= seen_seq
    cached = keys.cached_key(key.sha256)
    unchanged = is_unchanged(agent, heartbeat)
    if cached is None or cached.key is not key or not unchanged:
        record_heartbeat(agent=agent, heartbeat=heartbeat)
        if not unchanged:
            keys.forget(key.sha256)  # its row is older than this write, of which the notification is yet to come
        return number_directive(agent, just_read=is_current)
    flush.queue_last_seen(key, heartbeat)
    if cached.directive is None or cached.directive.seq < seen_seq:
        cached.directive = number_directive(agent, just_read=is_current)
    return cached.directive


def close_heartbeat_cache() -> None:
    """Write pending rows, clear the cache and stop caching."""
    keys.close()
    flush.end()
