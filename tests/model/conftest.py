"""The worlds of the deployments' tests, to walk in."""

from tests.deployments.conftest import staging, world

__all__ = ["staging", "world"]
