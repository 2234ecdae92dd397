"""Cache for heartbeats that report nothing new.

Nearly all heartbeats of a fleet are alike: the same healthy agent running the same bundle. For such a heartbeat the
heartbeat's authentication takes the agent's key, and `receive_heartbeat` the agent and its directive, from this process's
memory (`keys.py`), and what it reports for display is written in batches (`flush.py`): it costs no query. Every other
heartbeat (the first or a changed one) is written before it is answered.

What was read is reused only while this process has received all notifications committed up to
`MAX_NOTIFICATION_LAG_SECONDS` ago. A revoked key, a deleted environment or a new directive therefore takes effect
within that time in every process. The cache works on PostgreSQL, in a server that called `open_heartbeat_cache`, unless
`settings.BYTEOR_HEARTBEAT_CACHE` is off.
"""

from apps.agents.heartbeat_cache.flush import flush_last_seen, queue_last_seen
from apps.agents.heartbeat_cache.keys import open_heartbeat_cache, read_key
from apps.agents.heartbeat_cache.receive import close_heartbeat_cache, receive_heartbeat

__all__ = [
    "close_heartbeat_cache",
    "flush_last_seen",
    "open_heartbeat_cache",
    "queue_last_seen",
    "read_key",
    "receive_heartbeat",
]
