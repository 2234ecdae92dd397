"""An incident capture of this host, made from what the state folder holds."""

from __future__ import annotations

import json
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
    """Write a zip with the members that incident ingestion requires. StateError when nothing was ever active."""
    active, me = state.read("active.json"), identity(state)
    if active is None or me is None:
        raise StateError("nothing is active here")
    contents = read_bundle(state.bundle_path(active["bundle_sha256"]).read_bytes())
    text = contents.files["spec.kv"].decode()
    compiled = compile_spec(text)
    host = {"system": platform.system(), "release": platform.release(), "python": platform.python_version()}
    members = {
        "spec.kv": text,
        "config.json": contents.files["config.json"].decode(),
        "spec_validation.json": json.dumps(
            {"ok": compiled.ok, "diagnostics": [d.as_dict() for d in compiled.diagnostics]}
        ),
        "runtime.json": json.dumps({"agent_id": me.agent_id, "version": VERSION, "running": active}),
        "policy_audit.json": json.dumps({"captured_unix_ms": int(time.time() * 1000), "actions": []}),
        "environment.json": json.dumps({"environment_id": me.environment_id, "posture": me.posture, "host": host}),
    }
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            archive.writestr(name, members[name])
