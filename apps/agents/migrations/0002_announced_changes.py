from django.db import migrations

from apps.core.triggers import Announce


class Migration(migrations.Migration):
    dependencies = [
        ("agents", "0001_initial"),
        ("signing", "0001_initial"),
        ("tenancy", "0001_initial"),
    ]

    operations = [
        Announce("agents_agentkey", "agent:", "agent_id", ["revoked_at", "expires_at"]),
        Announce("signing_keysetversion", "keys:", "organization_id"),
        Announce("tenancy_environment", "environment:", "id", ["deleted_at"]),
    ]
