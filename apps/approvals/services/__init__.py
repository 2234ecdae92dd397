"""Every write to approvals. Each locks the environment first."""

from apps.approvals.selectors import present
from apps.approvals.services.credentials import check_credential
from apps.approvals.services.deciding import approve_by_policy, decide
from apps.approvals.services.ending import (
    expire,
    expire_due,
    revoke,
    revoke_for_subject,
    tell_expired_credentials,
)
from apps.approvals.services.requesting import request_approval

__all__ = [
    "approve_by_policy",
    "check_credential",
    "decide",
    "expire",
    "expire_due",
    "present",
    "request_approval",
    "revoke",
    "revoke_for_subject",
    "tell_expired_credentials",
]
