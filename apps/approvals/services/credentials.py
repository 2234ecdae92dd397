"""Credentials of approvals: issue and check."""

from __future__ import annotations

import datetime as dt
from typing import Any

from apps.approvals.models import Approval
from apps.core import clock
from apps.runtime import trust
from apps.signing import services as signing
from apps.tenancy.selectors import scope_of


def mint(approval: Approval, *, issued_by: list[str], now: dt.datetime) -> dict[str, Any]:
    """Return the columns of a new credential for this approval, signed with the organization's active key."""
    scope = scope_of(approval.environment)
    signer = signing.active_signer(scope.organization_id)
    expires = now + dt.timedelta(hours=int(approval.policy["credential_ttl_hours"]))
    claims = trust.CredentialClaims(
        kid=signer.kid,
        org_id=str(scope.organization_id),
        project_id=str(scope.project_id),
        environment_id=str(approval.environment_id),
        environment_posture=approval.environment.posture,
        spec_hash=approval.spec_hash,
        capabilities=tuple(sorted(approval.capabilities)),
        issued_at=clock.to_ms(now),
        expires_at=clock.to_ms(expires),
        issued_by=tuple(sorted(issued_by)),
        approval_id=str(approval.pk),
        config_hash=approval.config_hash,
        subject=approval.subject,
        targets_sha256=trust.targets_sha256(approval.target_agent_ids),
    )
    return {
        "credential": trust.mint_credential(claims, signer),
        "credential_kid": signer.kid,
        "credential_expires_at": expires,
    }


def check_credential(approval: Approval, *, at_ms: int) -> trust.CredentialClaims:
    """Return the claims of the approval's credential, if it is valid for this subject at `at_ms`. Raises TrustError."""
    scope = scope_of(approval.environment)
    return trust.verify_credential(
        approval.credential,
        keys=signing.trusted_keys(scope.organization_id),
        spec_hash=approval.spec_hash,
        environment_id=str(approval.environment_id),
        posture=approval.environment.posture,
        at_ms=at_ms,
        capabilities=approval.capabilities,
        config_hash=approval.config_hash,
        subject=approval.subject,
        expected_targets_sha256=trust.targets_sha256(approval.target_agent_ids),
        org_id=str(scope.organization_id),
        project_id=str(scope.project_id),
    )
