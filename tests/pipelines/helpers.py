"""Drafts, versions and jobs, made and run through their endpoints."""

from __future__ import annotations

from typing import Any

from apps.jobs.runner import drain
from tests.runtime.specs import ring
from tests.support import Caller, Tenant

GOOD = ring(("redact", "dataguard_redact", []), name="redact-orders")
OTHER = ring(("check", "dataguard_check", []), ("redact", "dataguard_redact", [0]), name="redact-orders")
WRONG = "oops\n" + GOOD.replace("dataguard_redact", "teleport")


def make_draft(caller: Caller, tenant: Tenant, spec: str = GOOD, name: str = "Orders", env: Any = None) -> Any:
    """The answer to creating a draft."""
    answer = caller.post(f"{tenant.path(env)}/drafts", {"name": name, "spec": spec})
    assert answer.status_code == 201, answer.content
    return answer


def make_version(caller: Caller, tenant: Tenant, spec: str = GOOD, env: Any = None) -> dict[str, Any]:
    """A version, by way of a draft."""
    draft = make_draft(caller, tenant, spec, env=env).json()
    answer = caller.post(f"{tenant.path(env)}/drafts/{draft['id']}/promote")
    assert answer.status_code in (200, 201), answer.content
    version: dict[str, Any] = answer.json()
    return version


def run_jobs() -> int:
    """Do what a worker would: every job that is due, one after the other."""
    return drain()
