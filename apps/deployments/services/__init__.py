"""Every write of this room. Each begins with the environment's row locked and is one transaction."""

from apps.deployments.services.agents import agent_removed, note_handed_out
from apps.deployments.services.bakes import sweep_bakes, take_unhealthy_heartbeat
from apps.deployments.services.bundles import create_bundle, delete_bundle
from apps.deployments.services.cancelling import cancel
from apps.deployments.services.reports import take_report
from apps.deployments.services.request import request_deployment
from apps.deployments.services.rollback import rollback
from apps.deployments.services.timeouts import sweep_timeouts

__all__ = [
    "agent_removed",
    "cancel",
    "create_bundle",
    "delete_bundle",
    "note_handed_out",
    "request_deployment",
    "rollback",
    "sweep_bakes",
    "sweep_timeouts",
    "take_report",
    "take_unhealthy_heartbeat",
]
