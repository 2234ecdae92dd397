from django.db import migrations

from apps.core.triggers import Immutable, LegalMoves

MOVES = {
    "pending_approval": ["approved", "denied"],
    "approved": ["building", "denied"],
    "building": ["deploying", "denied", "failed"],
    "deploying": ["active", "failed", "rolling_back"],
    "active": ["rolling_back"],
    "failed": ["rolling_back"],
    "rolling_back": ["failed", "rolled_back"],
}


class Migration(migrations.Migration):
    dependencies = [("deployments", "0001_initial")]

    operations = [
        LegalMoves("deployments_deployment", "status", "pending_approval", MOVES),
        Immutable(
            "deployments_deployment",
            [
                "id",
                "environment_id",
                "bundle_id",
                "version_id",
                "spec_hash",
                "config_hash",
                "capabilities",
                "approval_id",
                "requested_by",
                "target_selector",
                "strategy",
                "timeout_seconds",
            ],
        ),
        Immutable(
            "deployments_configbundle",
            [
                "id",
                "environment_id",
                "version_id",
                "version_number",
                "spec_hash",
                "config",
                "config_hash",
                "created_by",
            ],
        ),
        Immutable("deployments_deploymentevent"),
        Immutable("deployments_target", ["id", "deployment_id", "agent_id"]),
    ]
