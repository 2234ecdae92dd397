"""Every write to approvals. Each function locks the environment first.

- `requests`: request an approval
- `decisions`: approve and deny; `quorum` grants when enough votes count
- `expiry_and_revocation`: the end of a request or of a grant
- `credentials`: the signed proof that a grant issues
- `transitions`: each status change, with its event and audit event
"""

from apps.approvals.selectors import current_facts
from apps.approvals.services.credentials import check_credential
from apps.approvals.services.decisions import approve_by_policy, decide
from apps.approvals.services.expiry_and_revocation import (
    expire,
    expire_due,
    notify_expired_credentials,
    revoke,
    revoke_for_subject,
)
from apps.approvals.services.quorum import complete_quorums_of_environment, sweep_quorums
from apps.approvals.services.requests import request_approval

__all__ = [
    "approve_by_policy",
    "check_credential",
    "complete_quorums_of_environment",
    "current_facts",
    "decide",
    "expire",
    "expire_due",
    "notify_expired_credentials",
    "request_approval",
    "revoke",
    "revoke_for_subject",
    "sweep_quorums",
]
