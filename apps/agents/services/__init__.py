"""Every write of this room: enrollment, management by people, what agents say, what they are told."""

from apps.agents.services.directives import (
    SignedDirective,
    announce,
    announce_keys,
    announce_scope,
    directive_for,
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
from apps.agents.services.keys import note_key_use, rotate_key
from apps.agents.services.liveness import Heartbeat, record_heartbeat, set_running
from apps.agents.services.management import remove_agent, revoke_agent_key, update_agent

__all__ = [
    "Enrollment",
    "Heartbeat",
    "SignedDirective",
    "announce",
    "announce_keys",
    "announce_scope",
    "create_enrollment_token",
    "delete_enrollment_token",
    "directive_for",
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
