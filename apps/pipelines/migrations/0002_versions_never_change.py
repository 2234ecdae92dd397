from django.db import migrations

from apps.core.triggers import Immutable


class Migration(migrations.Migration):
    dependencies = [("pipelines", "0001_initial")]

    operations = [Immutable("pipelines_pipelineversion")]
