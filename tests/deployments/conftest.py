"""A world to deploy in."""

from __future__ import annotations

import pytest

from tests.copies import Copies, tenants
from tests.deployments.world import World
from tests.support import Tenant, make_tenant


def _with_two_hosts(tenant: Tenant, posture: str) -> World:
    world = World(tenant, getattr(tenant, posture))
    world.enroll(2)
    return world


_worlds = {posture: Copies(lambda each=posture: _with_two_hosts(make_tenant(), each)) for posture in ("dev", "staging")}


@pytest.fixture
def tenant(request: pytest.FixtureRequest, db: None) -> Tenant:
    """That of `world` or `staging` in a test that has one of them."""
    for name in ("world", "staging"):
        if name in request.fixturenames:
            world: World = request.getfixturevalue(name)
            return world.tenant
    return tenants.make()


@pytest.fixture
def world(db: None) -> World:
    """Two hosts in dev, where the policy itself approves."""
    return _worlds["dev"].make()


@pytest.fixture
def staging(request: pytest.FixtureRequest, db: None) -> World:
    """Two hosts in staging, where one other person has to approve."""
    if "world" in request.fixturenames:
        return _with_two_hosts(request.getfixturevalue("world").tenant, "staging")
    return _worlds["staging"].make()
