"""The short way through a heartbeat that says nothing new.

A fleet's heartbeats are nearly all alike: the same agent, well, running what it ran. Such a one is answered from what this
process remembers of the agent, and what it says is written in batches. Everything else (a first heartbeat, anything new, wrong
or refused) takes the full view, which alone decides what is right and alone writes what has a meaning.

What is remembered holds only while this process has heard, by the database's notifications, everything that was committed up
to `FRESH_SECONDS` ago (`memory.py`): a revoked key, a deleted environment or another directive is known within that time in
every process, or the short way is closed. It is open on PostgreSQL in a server that called `open_lane` and nowhere else.
"""

from apps.agents.lane import flush as _flush
from apps.agents.lane import memory as _memory
from apps.agents.lane.flush import flush_now, note_seen
from apps.agents.lane.memory import (
    Claims,
    Mark,
    Standing,
    channels_of,
    is_open,
    mark,
    note_told,
    open_lane,
    remember,
)

__all__ = [
    "Claims",
    "Mark",
    "Standing",
    "channels_of",
    "close_lane",
    "flush_now",
    "is_open",
    "mark",
    "note_seen",
    "note_told",
    "open_lane",
    "remember",
]


def close_lane() -> None:
    """Write what waits, forget everything and remember nothing more."""
    _memory.close_lane()
    _flush.end()
