"""The same lying control plane and the same real agent as in `tests/runtime/agent`."""

from tests.runtime.agent.conftest import host, plane, running

__all__ = ["host", "plane", "running"]
