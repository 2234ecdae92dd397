from django.db import migrations

from apps.core.triggers import LegalMoves


class Migration(migrations.Migration):
    dependencies = [("jobs", "0001_initial")]
    operations = [
        LegalMoves(
            "jobs_job",
            "status",
            "queued",
            {
                "queued": ["running"],
                "running": ["completed", "failed"],
                "failed": ["retrying"],
                "retrying": ["completed", "dead_letter"],
                "dead_letter": ["queued"],
            },
        )
    ]
