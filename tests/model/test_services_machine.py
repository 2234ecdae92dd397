"""Random walks over the real services through HTTP, with workers that are killed, clocks that jump, keys that change, and
agents that check what they are given by the agents' own code; after each step every invariant holds, and in the end all of them
comes to rest.

`BYTEOR_MODEL_EXAMPLES=300` walks longer (ten walks take about twenty seconds on one core).
"""

from __future__ import annotations

import copy
import datetime as dt
import os
from typing import Any

import pytest
import time_machine
from django.db import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from apps.approvals import services as approvals
from apps.core import clock
from apps.deployments.models import Deployment, Target
from apps.deployments.services import builds, end_due_bakes, time_out_silent_targets
from apps.jobs.runner import run_attempt
from apps.jobs.services import release_expired, take_job
from apps.runtime import trust
from tests import invariants
from tests.copies import forget_what_is_remembered
from tests.deployments.world import Host, World

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

EXAMPLES = int(os.environ.get("BYTEOR_MODEL_EXAMPLES", "6"))
PHASED = {"type": "phased", "phases": [{"percent": 50, "bake_seconds": 60}, {"percent": 100, "bake_seconds": 0}]}
UNDER_WAY = ("pending_approval", "approved", "building", "deploying", "rolling_back")
REFUSED = (409, 403, 422, 429)


class ModelAgent(Host):
    """A host that follows key sets, and runs nothing but what it verified."""

    directives: list[trust.Directive]

    def follow_keys(self) -> None:
        answer = self.http.get(f"/agents/{self.id}/signing-keys?after={self.keys.version}")
        assert answer.status_code == 200, answer.content
        self.keys = trust.accept_keyset(self.keys, answer.json()["envelopes"])

    def heartbeat(self, health: dict[str, Any] | None = None) -> trust.Directive:
        self.follow_keys()
        directive = super().heartbeat(health)
        self.directives.append(directive)
        return directive

    def obey(self, *, fail: bool) -> None:
        """One round as the reference agent makes it."""
        directive = self.heartbeat()
        if directive.directive == "none":
            return
        if directive.directive == "stop":
            self.running = None
            self.report(directive, "stopped")
            return
        if self.running is None or self.running.sha256 != directive.bundle_sha256:
            answer = self.http.get(f"/agents/{self.id}/deployments/{directive.deployment_id}/bundle")
            if answer.status_code != 200:
                assert answer.status_code in (404, 409), answer.content
                self.report(directive, "failed", reason="bundle_refused")
                return
            b"".join(answer.streaming_content)
            try:
                fetched = self.fetch(directive)
            except trust.TrustError as error:
                self.report(directive, "failed", reason=error.code)
                return
            self.report(directive, "fetched")
            self.report(directive, "verified")
            if fail:
                self.report(directive, "failed", reason="it did not start")
                return
            self.running = fetched
            self.highest = max(self.highest, fetched.sequence)
        self.report(directive, "rolled_back" if directive.directive == "rollback" else "activated")


class Services(RuleBasedStateMachine):
    """Bob and carol ask, carol and alice decide (two must agree), workers build, three agents obey or don't, time passes."""

    base: World
    start: dt.datetime

    @initialize()
    def begin(self) -> None:
        forget_what_is_remembered()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        # the clock stands still between steps, so that a walk can be walked again
        self.travel = time_machine.travel(self.start, tick=False)
        self.time = self.travel.start()
        self.world = copy.copy(self.base)
        self.world.hosts = []
        for host in self.base.hosts:
            agent = ModelAgent.__new__(ModelAgent)
            agent.__dict__.update(host.__dict__, world=self.world, reported=[], directives=[])
            self.world.hosts.append(agent)
        self.made: list[str] = [
            self.world.request(BUNDLES[0]),
            self.world.request(BUNDLES[1], self.world.hosts[:1], strategy=PHASED),
        ]

    def teardown(self) -> None:
        if not hasattr(self, "transaction"):
            return
        try:
            self.come_to_rest()
        finally:
            self.travel.stop()
            transaction.set_rollback(True)
            self.transaction.__exit__(None, None, None)

    # --- people ----------------------------------------------------------------------------------------------------

    @rule(
        bundle=st.integers(0, 3),
        where=st.sampled_from([(0,), (0, 1), (1, 2), (0, 1, 2)]),
        phased=st.booleans(),
        tolerate=st.integers(0, 1),
        back=st.booleans(),
        who=st.sampled_from(["bob", "carol"]),
    )
    def ask(self, bundle: int, where: tuple[int, ...], phased: bool, tolerate: int, back: bool, who: str) -> None:
        targets = [self.world.hosts[n] for n in where if n < len(self.world.hosts)]
        plan = PHASED if phased else {"type": "all_at_once"}
        strategy = {**plan, "max_failures": tolerate, "auto_rollback": back}
        answer = self.world.ask(BUNDLES[bundle], targets, who, strategy=strategy)
        assert answer.status_code in (201, *REFUSED), answer.content
        if answer.status_code == 201:
            self.made.append(answer.json()["id"])

    def _pick(self, data: Any) -> str:
        return str(data.draw(st.sampled_from(self.made[-4:])))

    @precondition(lambda self: self.made)
    @rule(
        data=st.data(),
        who=st.sampled_from(["alice", "carol", "bob"]),
        verb=st.sampled_from(["approve"] * 5 + ["deny"]),
        stale=st.sampled_from([False] * 5 + [True]),
    )
    def decide(self, data: Any, who: str, verb: str, stale: bool) -> None:
        approval = self.world.approval(self._pick(data))
        digest = "sha256:" + "0" * 64 if stale else approval["shown_digest"]
        body = {"comment": "seen", "shown_digest": digest}
        answer = self.world.caller(who).post(f"{self.world.path}/approvals/{approval['id']}/{verb}", body)
        assert answer.status_code in (200, *REFUSED), answer.content
        assert not (stale and answer.status_code == 200)

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def agree(self, data: Any) -> None:
        """Two who may do it approve what is shown, so that walks come further."""
        made = self._pick(data)
        for who in ("alice", "carol", "bob"):
            self.world.decide(made, who=who)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), verb=st.sampled_from(["rollback", "cancel", "revoke"]))
    def cancel_or_roll_back(self, data: Any, verb: str) -> None:
        made = self._pick(data)
        answer = self.world.decide(made, "revoke") if verb == "revoke" else self.world.act(made, verb)
        assert answer.status_code in (200, *REFUSED), answer.content

    @rule(required=st.integers(1, 2), cap=st.integers(2, 4))
    def edit_the_policy(self, required: int, cap: int) -> None:
        body = {"policy": {"required_approvals": required}, "max_in_flight_deployments": cap}
        answer = self.world.caller("alice").patch(self.world.path, body)
        assert answer.status_code == 200, answer.content

    @rule(revoke=st.booleans())
    def change_keys(self, revoke: bool) -> None:
        """The signing key is rotated, and perhaps the former one is found out to be stolen."""
        keys = f"/orgs/{self.world.tenant.organization.pk}/signing-keys"
        alice = self.world.caller("alice")
        former = [k["kid"] for k in alice.get(keys).json()["results"] if k["status"] == "active"]
        answer = alice.post(keys, {})
        assert answer.status_code in (201, 409), answer.content
        if revoke and answer.status_code == 201:
            answer = alice.post(f"{keys}/{former[0]}/revoke", {"reason": "stolen"})
            assert answer.status_code == 200, answer.content

    @precondition(lambda self: len(self.world.hosts) == 3)
    @rule()
    def remove_an_agent(self) -> None:
        removed = self.world.hosts.pop()
        assert self.world.bob.delete(f"{self.world.path}/agents/{removed.id}?force=true").status_code == 204

    # --- workers and clocks ----------------------------------------------------------------------------------------

    @rule()
    def work(self) -> None:
        run = take_job()
        if run is not None:
            assert run_attempt(run) in ("completed", "failed", "lost")

    @rule(how_far=st.integers(0, 2))
    def a_worker_is_killed(self, how_far: int) -> None:
        """It took a job, began the build, or had the archive: then it is silent, and its lease runs out."""
        run = take_job()
        if run is None or run.environment_id is None or run.type != "deploy_bundle_build":
            return
        if how_far:
            work = builds.start_build(deployment_id=run.subject_id, environment_id=run.environment_id)
            if how_far == 2 and isinstance(work, builds.Work):
                builds.make_archive(work)

    @rule(seconds=st.sampled_from([1, 31, 61, 61, 700, 9 * 3600, 25 * 3600]))
    def time_passes(self, seconds: int) -> None:
        self.time.shift(seconds)

    @rule()
    def chores(self) -> None:
        now = clock.now()
        approvals.expire_due(now)
        approvals.notify_expired_credentials(now)
        time_out_silent_targets(now)
        end_due_bakes(now)
        release_expired()

    # --- agents ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.hosts)
    @rule(data=st.data(), fail=st.sampled_from([False] * 4 + [True]))
    def an_agent_obeys(self, data: Any, fail: bool) -> None:
        data.draw(st.sampled_from(self.world.hosts)).obey(fail=fail)

    @precondition(lambda self: any(host.directives for host in self.world.hosts))
    @rule(
        data=st.data(),
        status=st.sampled_from(["fetched", "verified", "activated", "failed", "rolled_back", "stopped"]),
        times=st.integers(1, 2),
    )
    def an_agent_reports_on_an_earlier_directive(self, data: Any, status: str, times: int) -> None:
        """Late, repeated, or not true: taken while it is still wanted, else refused."""
        agent = data.draw(st.sampled_from([host for host in self.world.hosts if host.directives]))
        directive = data.draw(st.sampled_from(agent.directives[-3:]))
        if directive.for_deployment_id is not None:
            for _ in range(times):
                assert agent.report(directive, status) in (200, 404, 409)

    @precondition(lambda self: self.world.hosts)
    @rule(data=st.data())
    def an_agent_is_not_well(self, data: Any) -> None:
        data.draw(st.sampled_from(self.world.hosts)).heartbeat({"ok": False, "detail": "sick"})

    # --- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def every_invariant_holds(self) -> None:
        if hasattr(self, "transaction"):
            self.time.shift(0.1)
            invariants.check()

    @invariant()
    def agents_run_what_was_approved_and_built_for_them(self) -> None:
        for agent in getattr(self, "world", self.base).hosts:
            if agent.running is not None:
                row = Deployment.objects.get(pk=agent.running.deployment_id)
                assert (row.bundle_sha256, row.sequence) == (agent.running.sha256, agent.running.sequence)
                assert Target.objects.filter(deployment=row, agent_id=agent.id).exists()

    def come_to_rest(self) -> None:
        """Time passes, workers work, agents carry out their directives: then nothing is in progress any more."""
        for _ in range(12):
            self.time.shift(700)
            for _ in range(30):
                run = take_job()
                if run is None:
                    break
                run_attempt(run)
            self.chores()
            for agent in self.world.hosts:
                agent.obey(fail=False)
            self.chores()
            left = Deployment.objects.filter(status__in=UNDER_WAY)
            if not left.exists():
                break
            self.time.shift(9 * 3600)
        assert not left.exists(), [(str(d.pk), d.status, d.status_reason) for d in left]
        for _ in range(30):
            run = take_job()
            if run is not None:
                run_attempt(run)
        invariants.check(at_rest=True)
        for agent in self.world.hosts:
            directive = agent.heartbeat()
            row = Target.objects.filter(deployment_id=directive.deployment_id, agent_id=agent.id).first()
            if row is not None and row.status == "activated":
                assert agent.running is not None


BUNDLES: list[str] = []


def test_random_walks_break_no_invariant_and_come_to_rest(tenant: Any) -> None:
    world = World(tenant, tenant.prod)
    world.enroll(3)
    BUNDLES[:] = [world.bundle(f"f{n}:drop") for n in range(4)]
    while (run := take_job()) is not None:
        run_attempt(run)
    for who in ("alice", "bob", "carol"):
        world.caller(who)
    Services.base, Services.start = world, clock.now() + dt.timedelta(seconds=1)
    run_state_machine_as_test(
        Services,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            derandomize="BYTEOR_MODEL_EXAMPLES" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            phases=[Phase.generate] if os.environ.get("BYTEOR_MODEL_NO_SHRINK") else list(Phase),
        ),
    )
