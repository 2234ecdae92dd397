"""Log lines are JSON with request, principal and tenant ids, and hold no secret."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import django; django.setup()
from tests.support import make_tenant
from django.test.utils import setup_test_environment
from django.core.management import call_command
setup_test_environment(); call_command("migrate", verbosity=0)
tenant = make_tenant(); caller = tenant.caller("bob")
caller.get(tenant.path()); print("TOKEN", caller.token)
"""


def test_lines_are_json_with_ids_and_without_secrets(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_CLOUD_")}
    environment |= {"BYTEOR_CLOUD_DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "byteor.settings"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.strip()]
    request = next(line for line in lines if line["event"] == "request")
    assert {"request_id", "principal", "organization_id", "environment_id", "status", "ms", "timestamp"} <= set(request)
    token = done.stdout.split("TOKEN ")[1].strip()
    assert token not in done.stderr
