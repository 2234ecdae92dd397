"""An incident capture of this host, made from what the state folder holds."""

from __future__ import annotations

import json
import os
import platform
import time
import zipfile
from pathlib import Path

from apps.runtime.agent import VERSION
from apps.runtime.agent.enroll import identity
from apps.runtime.agent.state import State, StateError
from apps.runtime.bundle import read_bundle
from apps.runtime.spec import compile_spec


def write_incident(state: State, output: Path) -> None:
    """Write a zip (0600) with the members that incident ingestion requires: whole, or not at all. StateError when nothing is active.

    It holds how what runs is doing, the agent's last log lines and what this host allows; no key, no secret, no record.
    """
    active, me = state.read("active.json"), identity(state)
    if active is None or me is None:
        raise StateError("nothing is active here")
    contents = read_bundle(state.bundle_path(active["bundle_sha256"]).read_bytes())
    text = contents.files["spec.kv"].decode()
    compiled = compile_spec(text)
    host = {"system": platform.system(), "release": platform.release(), "python": platform.python_version()}
    health = state.read("health.json") or {}
    allowed = health.get("allowed")
    runtime = {
        "health": {name: health.get(name) for name in ("ok", "detail", "at_unix_ms", "last_problem")},
        "log": str(health.get("log", "")).splitlines(),
        "stages": [stage.id for stage in compiled.plan.stages] if compiled.plan else [],
    }
    members = {
        "spec.kv": text,
        "config.json": contents.files["config.json"].decode(),
        "spec_validation.json": json.dumps(
            {"ok": compiled.ok, "diagnostics": [d.as_dict() for d in compiled.diagnostics]}
        ),
        "runtime.json": json.dumps({"agent_id": me.agent_id, "version": VERSION, "running": active, **runtime}),
        "policy_audit.json": json.dumps(
            {"captured_unix_ms": int(time.time() * 1000), "actions": list(compiled.capabilities), "allowed": allowed}
        ),
        "environment.json": json.dumps({"environment_id": me.environment_id, "posture": me.posture, "host": host}),
    }
    draft = output.with_name(f".{output.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600, exist_ok=False)
    try:
        draft.unlink(missing_ok=True)
        handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w+b") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(members):
                archive.writestr(name, members[name])
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
