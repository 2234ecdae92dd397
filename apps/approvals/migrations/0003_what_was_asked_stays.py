from django.db import migrations

from apps.core.triggers import Immutable


class Migration(migrations.Migration):
    dependencies = [("approvals", "0002_rules_in_the_database")]
    operations = [
        Immutable(
            "approvals_approval",
            [
                "id",
                "environment_id",
                "action",
                "deployment_id",
                "replay_id",
                "requested_by",
                "policy",
                "required_approvals",
                "expires_at",
                "spec_hash",
                "config_hash",
                "capabilities",
                "strategy",
                "target_agent_ids",
            ],
        ),
    ]
