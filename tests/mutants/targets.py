"""Which modules are mutated, and which tests may notice.

A group is one pytest process. Its tests are those that are near its modules; more tests find little more and take long.
Left out of an app are delivery (`api`, `admin`, `pages`, `urls`), what runs once at the start (`apps`, `checks`, `hooks`,
`jobs`, `registry`), migrations and commands.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.mutants.making import ROOT


class Group(NamedTuple):
    """Modules, as patterns of paths, and the tests that are tried on them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def paths(self) -> list[str]:
        """The modules that hold code, each once."""
        found = {path.relative_to(ROOT).as_posix() for pattern in self.modules for path in ROOT.glob(pattern)}
        return sorted(path for path in found if not path.endswith("/__init__.py"))


_DEPLOYMENTS = (
    "agent_events",
    "build",
    "bystanders",
    "desired",
    "key_revocation",
    "outside_trouble",
    "phases",
    "reports",
    "requests",
    "road",
    "rollback",
    "waiting",
)

GROUPS = {
    "trust": Group(
        ("apps/runtime/trust/*.py", "apps/runtime/bundle.py"),
        (
            "tests/runtime/trust",
            "tests/runtime/bundle",
            "tests/runtime/agent/test_keyring.py",
            "tests/runtime/agent/test_obey.py",
        ),
    ),
    "obey": Group(("apps/runtime/agent/obey.py",), ("tests/runtime/agent/test_obey.py",)),
    "rules": Group(
        ("apps/deployments/rules.py", "apps/deployments/desired.py", "apps/deployments/rollout.py"),
        tuple(f"tests/deployments/test_{name}.py" for name in ("desired", "rollout", "rules")),
    ),
    "approvals": Group(
        ("apps/approvals/*.py", "apps/approvals/services/*.py"),
        ("tests/approvals", "tests/access/test_principal.py", "tests/deployments/test_requests.py"),
    ),
    "signing": Group(
        ("apps/signing/*.py", "apps/signing/services/*.py"),
        ("tests/signing", "tests/deployments/test_key_revocation.py", "tests/deployments/test_build.py"),
    ),
    "audit": Group(
        ("apps/audit/*.py",), ("tests/audit", "tests/access/test_members.py", "tests/signing/test_lifecycle.py")
    ),
    "access": Group(("apps/access/*.py", "apps/access/services/*.py"), ("tests/access", "tests/tenancy")),
    "deployments": Group(
        ("apps/deployments/services/*.py",), tuple(f"tests/deployments/test_{name}.py" for name in _DEPLOYMENTS)
    ),
}

LEFT_OUT = ("api.py", "admin.py", "apps.py", "checks.py", "hooks.py", "jobs.py", "registry.py", "urls.py")


def modules(group: Group) -> list[str]:
    """The modules of a group without those of `LEFT_OUT`."""
    return [path for path in group.paths if path.rsplit("/", 1)[-1] not in LEFT_OUT]
