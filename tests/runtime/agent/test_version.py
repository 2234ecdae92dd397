"""Whatever changes of the packed agent has a version of its own: by the same one no host would take it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from apps.agents.management.commands import agent_version
from apps.runtime import agent
from apps.runtime.agent import VERSION, build
from apps.runtime.agent.build import packed_sha256
from apps.runtime.trust import version_tuple

HINT = "What is packed into the agent changed: raise VERSION in apps/runtime/agent/__init__.py, then manage.py agent_version --pin."


def test_the_version_is_the_one_of_the_sources() -> None:
    pins = agent_version.pinned()
    assert pins.get(VERSION) == packed_sha256(), HINT
    assert list(pins) == sorted(pins, key=version_tuple)
    assert list(pins)[-1] == VERSION
    assert len(set(pins.values())) == len(pins)


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Versions of its own, of which the present one is the only one."""
    path = tmp_path / "versions.json"
    path.write_text(json.dumps({VERSION: packed_sha256()}))
    monkeypatch.setattr(agent_version, "PINS", path)
    return path


def changed_sources(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files = dict(build._files())
    assert name in files
    files[name] += b"\n"
    monkeypatch.setattr(build, "_files", lambda: files)


def pin() -> str:
    out = io.StringIO()
    call_command("agent_version", "--pin", stdout=out)
    return out.getvalue().strip()


@pytest.mark.parametrize("name", ["__main__.py", "apps/runtime/ops/identity.py", "rfc8785/__init__.py"])
def test_another_byte_of_any_packed_file_needs_another_version(
    pins: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = packed_sha256()
    assert pin() == f"{VERSION} {before}"
    changed_sources(monkeypatch, name)
    assert packed_sha256() != before
    with pytest.raises(CommandError, match="raise VERSION"):
        pin()
    assert json.loads(pins.read_text()) == {VERSION: before}
    monkeypatch.setattr(agent, "VERSION", "0.2.99")
    with pytest.raises(CommandError, match="lower"):
        pin()
    monkeypatch.setattr(agent, "VERSION", "99.0.0")
    assert pin() == f"99.0.0 {packed_sha256()}"
    assert json.loads(pins.read_text()) == {VERSION: before, "99.0.0": packed_sha256()}
