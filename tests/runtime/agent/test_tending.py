"""An unforeseen error ends none of the agent's loops."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from apps.runtime.agent import service
from apps.runtime.agent.client import Client
from apps.runtime.agent.enroll import Identity
from apps.runtime.agent.limits import Limits
from apps.runtime.agent.service import Agent
from apps.runtime.agent.state import State
from apps.runtime.trust import KeySet
from tests.runtime.agent.waiting import until
from tests.runtime.making import ORG, Maker


def test_the_pipeline_is_looked_after_again_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    state = State(tmp_path / "state", lock=False)
    state.trust(KeySet(ORG, 1, (Maker().key,)))
    me = Identity("http://127.0.0.1:9", "a" * 36, "key", "o" * 36, "p" * 36, "e" * 36, "dev", 10.0)
    limits = Limits.given(tmp_path / "data", state_dir=tmp_path / "state")
    agent = Agent(state, me, Client(me.base_url, allow_http=True), limits)
    looks: list[int] = []

    def tend() -> bool:
        looks.append(1)
        if len(looks) < 3:
            raise RuntimeError("nobody thought of this")
        return False

    monkeypatch.setattr(service, "TEND_SECONDS", 0.01)
    monkeypatch.setattr(agent.runner, "tend", tend)
    thread = threading.Thread(target=agent._tend, daemon=True)
    thread.start()
    until(lambda: len(looks) >= 5)
    agent.stopping.set()
    thread.join(30)
    assert not thread.is_alive()
    assert sum("nobody thought of this" in line for line in agent.journal.tail().splitlines()) == 1
