"""The commands of `docs/keys.md`, run in their order, work against the real API."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apps.signing.models import SigningKey
from tests.deployments.world import World
from tests.support import Tenant

pytestmark = [pytest.mark.alone, pytest.mark.django_db(transaction=True), pytest.mark.timeout(240)]

DOC = Path(__file__).resolve().parents[2] / "docs" / "keys.md"


def blocks(word: str) -> list[str]:
    return [b for b in re.findall(r"```sh\n(.*?)```", DOC.read_text(), re.DOTALL) if word in b]


def test_the_commands_of_the_page_rotate_and_revoke(transactional_db: None, tenant: Tenant, live_server: Any) -> None:
    world = World(tenant, tenant.dev)
    world.enroll(1)
    made = world.roll_out()
    (former,) = SigningKey.objects.filter(organization=tenant.organization)
    given = {
        "API": f"{live_server.url}/api/v1",
        "ORG": str(tenant.organization.pk),
        "PROJECT": str(tenant.project.pk),
        "ENV": str(tenant.dev.pk),
        "TOKEN": str(tenant.caller("alice").token),
    }
    head = "set -eu\n" + "\n".join(f"{name}='{value}'" for name, value in given.items())
    script = "\necho; echo ==next==\n".join([head, *blocks("curl")])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed, rotated, revoked, marked, versions = done.stdout.split("==next==")[1:]
    assert former.kid in listed
    assert '"status":"active"' in rotated
    assert former.kid not in rotated
    assert former.kid in revoked
    assert '"status":"revoked"' in revoked
    assert '"reason":"laptop stolen"' in revoked
    assert made in marked
    assert '"key_set_version":' in versions


def test_a_new_key_encryption_key_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from byteor.config import load

    (block,) = blocks("openssl rand")
    made = subprocess.run(["bash", "-c", block], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("BYTEOR_CLOUD_KEY_ENCRYPTION_KEYS", made)
    ((name, key),) = load().key_encryption_keys
    assert (name, len(key)) == ("2027", 32)
