"""A world to deploy in."""

from __future__ import annotations

import pytest

from tests.deployments.world import World
from tests.support import Tenant


@pytest.fixture
def world(tenant: Tenant) -> World:
    """Two hosts in dev, where the policy itself approves."""
    world = World(tenant, tenant.dev)
    world.enroll(2)
    return world


@pytest.fixture
def staging(tenant: Tenant) -> World:
    """Two hosts in staging, where one other person has to approve."""
    world = World(tenant, tenant.staging)
    world.enroll(2)
    return world
