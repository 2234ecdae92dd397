"""Every write of this app.

- `enrollment`: tokens, and hosts that enroll; `keys`: runtime keys
- `heartbeats`: reports of agents; `directives`: the signed answers; `upgrades`: which program an agent may install
- `management`: rename, label, revoke and remove agents
"""

from apps.agents.services.directives import (
    SignedDirective,
    announce,
    announce_keys,
    announce_scope,
    note_assigned,
)
from apps.agents.services.enrollment import (
    Enrollment,
    create_enrollment_token,
    delete_enrollment_token,
    enroll,
    note_refused_enrollment,
    usable_token,
)
from apps.agents.services.heartbeats import Heartbeat, record_heartbeat, set_running
from apps.agents.services.keys import note_key_use, rotate_key
from apps.agents.services.management import remove_agent, revoke_agent_key, update_agent
from apps.agents.services.upgrades import allow_upgrade, check_upgrade_percent

__all__ = [
    "Enrollment",
    "Heartbeat",
    "SignedDirective",
    "allow_upgrade",
    "announce",
    "announce_keys",
    "announce_scope",
    "check_upgrade_percent",
    "create_enrollment_token",
    "delete_enrollment_token",
    "enroll",
    "note_assigned",
    "note_key_use",
    "note_refused_enrollment",
    "record_heartbeat",
    "remove_agent",
    "revoke_agent_key",
    "rotate_key",
    "set_running",
    "update_agent",
    "usable_token",
]
