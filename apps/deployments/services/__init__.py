"""Write operations on deployments. Each locks the environment's row first and is one transaction.

What causes a change, and calls what is below:

- people: `requests`, `cancellation`, `rollback`, `bundles`
- approvals and keys: `denial_and_failure`, `key_revocation`
- workers and clocks: `builds`, `bakes`, `timeouts`
- agents: `reports`, `agent_events`

What a change leads to, top to bottom:

- `progress`: the transition that the targets require; `phases`: assignment of targets, and bakes
- `reconcile`: consequences for other deployments, by `supersession` and `build_queue`
- `transitions`: each status change, with its event and audit row
"""

from apps.deployments.services.agent_events import record_bundle_download, settle_targets_of_agent
from apps.deployments.services.bakes import end_due_bakes, record_unhealthy_heartbeat
from apps.deployments.services.bundles import create_bundle, delete_bundle
from apps.deployments.services.cancellation import cancel
from apps.deployments.services.reports import record_report
from apps.deployments.services.requests import request_deployment
from apps.deployments.services.rollback import rollback
from apps.deployments.services.timeouts import extend_timeout_for_storage, time_out_silent_targets

__all__ = [
    "cancel",
    "create_bundle",
    "delete_bundle",
    "end_due_bakes",
    "extend_timeout_for_storage",
    "record_bundle_download",
    "record_report",
    "record_unhealthy_heartbeat",
    "request_deployment",
    "rollback",
    "settle_targets_of_agent",
    "time_out_silent_targets",
]
