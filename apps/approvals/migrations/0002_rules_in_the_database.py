from django.db import migrations

from apps.core.triggers import Immutable, LegalMoves


class Migration(migrations.Migration):
    dependencies = [("approvals", "0001_initial")]
    operations = [
        LegalMoves(
            "approvals_approval",
            "status",
            "pending",
            {"pending": ["approved", "denied", "expired", "revoked"], "approved": ["revoked"]},
        ),
        Immutable("approvals_decision"),
        Immutable("approvals_approvalevent"),
    ]
