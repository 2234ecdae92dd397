import django.db.models.deletion
from django.db import migrations, models

import apps.core.clock
import apps.core.ids
from apps.core.triggers import Immutable


class Migration(migrations.Migration):
    dependencies = [("deployments", "0002_rules_in_the_database"), ("tenancy", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="PhaseEvent",
            fields=[
                (
                    "id",
                    models.UUIDField(default=apps.core.ids.new_id, editable=False, primary_key=True, serialize=False),
                ),
                ("created_at", models.DateTimeField(default=apps.core.clock.now, editable=False)),
                ("phase", models.PositiveIntegerField(editable=False)),
                (
                    "mark",
                    models.CharField(
                        choices=[("started", "Started"), ("baking", "Baking"), ("passed", "Passed")],
                        editable=False,
                        max_length=16,
                    ),
                ),
                ("detail", models.CharField(blank=True, editable=False, max_length=500)),
                (
                    "deployment",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="phase_events",
                        to="deployments.deployment",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("deployment", "phase", "mark"), name="phase_event_once"),
                    models.CheckConstraint(
                        condition=models.Q(("mark__in", ["started", "baking", "passed"])),
                        name="phase_event_mark_known",
                    ),
                ]
            },
        ),
        migrations.AddField("deployment", "phase", models.PositiveIntegerField(editable=False, null=True)),
        migrations.AddField("deployment", "phase_started_at", models.DateTimeField(editable=False, null=True)),
        migrations.AddField("deployment", "bake_started_at", models.DateTimeField(editable=False, null=True)),
        migrations.AddField("deployment", "bake_ends_at", models.DateTimeField(editable=False, null=True)),
        migrations.AddIndex(
            "deployment",
            models.Index(
                condition=models.Q(("bake_ends_at__isnull", False)), fields=["bake_ends_at"], name="deployment_baking"
            ),
        ),
        Immutable("deployments_phaseevent"),
        # which target belongs to which phase is fixed when the deployment is asked for
        Immutable("deployments_target", ["phase"], label="phase"),
    ]
