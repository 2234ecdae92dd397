"""The roads that lead by the fault points. Each begins in an environment of its own and ends where nothing moves any more."""

from __future__ import annotations

from tests.faults.journey import Journey
from tests.flows.world import until

MASK, HASH = "email:mask=1:4:*", "email:hash"
NOWHERE = "in.jsonl/out.jsonl"
"""Below a file, where no file can be: the agent can't start a pipeline that writes there."""


def author(j: Journey) -> None:
    """Draft, ingestion, version, bundle."""
    j.bundle(j.author(), MASK)


def abandoned(j: Journey) -> None:
    """The whole worker dies with a job in hand; the next one takes it back and does it."""
    j.stack.points.arm("jobs.begin.after_commit", action="pause")
    draft = j.draft()
    until(j.stack.points.hit)
    j.stack.worker.pause()
    j.arm()
    j.stack.worker.go_on()
    j.promote(draft)


def deploy(j: Journey) -> None:
    """A host enrolls; the first deployment, from draft to records coming out."""
    j.host()
    j.deploy(j.author(), MASK)


def rollback(j: Journey) -> None:
    """A second deployment takes over from the first, and is rolled back to it."""
    j.host()
    version = j.author()
    j.deploy(version, MASK)
    second = j.deploy(version, HASH)
    j.act(second, "rollback", "rolling_back", "rolled_back")
    j.reach(second, "rolled_back")
    j.flow()


def stop(j: Journey) -> None:
    """The only deployment is rolled back: nothing runs any more."""
    j.host()
    only = j.deploy(j.author(), MASK)
    j.act(only, "rollback", "rolling_back", "rolled_back")
    j.reach(only, "rolled_back")


def auto_rollback(j: Journey) -> None:
    """The second deployment can't be started by the host, and is rolled back automatically."""
    j.host()
    version = j.author()
    j.deploy(version, MASK)
    bad = j.request(
        j.bundle(version, HASH, out=NOWHERE), strategy={"type": "all_at_once", "max_failures": 0, "auto_rollback": True}
    )
    j.decide(bad)
    j.reach(bad, "rolled_back")
    j.flow()


def phased(j: Journey) -> None:
    """Two hosts, one after the other, with a second's bake between them."""
    for name in ("berlin", "lyon"):
        j.host(name)
    phases = [{"percent": 50, "bake_seconds": 1}, {"percent": 100}]
    asked = j.request(j.bundle(j.author(), MASK), strategy={"type": "phased", "phases": phases})
    j.decide(asked)
    j.reach(asked, "active")
    j.flow()


def unhealthy_agents(j: Journey) -> None:
    """During the bake time the pipeline can't write any more: its host reports it, and the deployment is rolled back."""
    for name in ("berlin", "lyon"):
        j.host(name)
    phases = [{"percent": 50, "bake_seconds": 60}, {"percent": 100}]
    asked = j.request(j.bundle(j.author(), MASK), strategy={"type": "phased", "phases": phases, "auto_rollback": True})
    j.decide(asked)
    j.activated(asked, 1)
    for host in j.hosts:
        if host.kept("active.json"):
            host.block()
    j.reach(asked, "rolled_back")


def expired(j: Journey) -> None:
    """No reviewer decides in time."""
    j.host()
    asked = j.request(j.bundle(j.author(), MASK))
    j.pass_time("approval", j.approval(asked)["id"], "expires_at", "approval_expiry")
    j.reach(asked, "denied")


def credential_expired(j: Journey) -> None:
    """A deployment waits so long for its target that its approval's credential runs out."""
    host = j.host()
    version = j.author()
    host.stop()
    first, second = (j.request(j.bundle(version, rule)) for rule in (MASK, HASH))
    j.decide(first)
    j.reach(first, "deploying")
    j.decide(second)
    j.pass_time("approval", j.approval(second)["id"], "credential_expires_at", "credential_expiry")
    j.reach(second, "failed")
    host.start()
    j.reach(first, "active")


def silent(j: Journey) -> None:
    """The host is away, and its target is given up; when it is back it gets the current directive."""
    host = j.host()
    version = j.author()
    host.stop()
    asked = j.request(j.bundle(version, MASK), timeout_seconds=1)
    j.decide(asked)
    j.reach(asked, "failed")
    j.start(host)
    j.deploy(version, HASH)


def cancelled(j: Journey) -> None:
    """Called off after it was handed out, before the host took it."""
    host = j.host()
    version = j.author()
    host.stop()
    asked = j.request(j.bundle(version, MASK))
    j.decide(asked)
    j.reach(asked, "deploying")
    j.act(asked, "cancel", "rolling_back", "rolled_back")
    j.reach(asked, "rolled_back")
    j.start(host)


def withdrawn(j: Journey) -> None:
    """The requester takes the request back."""
    j.host()
    asked = j.request(j.bundle(j.author(), MASK))
    j.withdraw(asked)
    j.reach(asked, "denied")


def removed(j: Journey) -> None:
    """The agent is deleted while it runs something."""
    host = j.host()
    j.deploy(j.author(), MASK)
    host.stop()
    j.remove(host)


def new_key(j: Journey) -> None:
    """The agent gets a new runtime key, and goes on with it."""
    host = j.host()
    host.stop()
    j.rotate_agent_key(host)
    j.start(host)
    j.deploy(j.author(), MASK)


def signing_keys(j: Journey) -> None:
    """The signing key is rotated and the former revoked: the agent follows, and runs what is deployed under the new one."""
    host = j.host()
    version = j.author()
    j.deploy(version, MASK)
    former = j.rotate_signing_key()
    j.until(lambda: host.trusts_the_newest_keys())
    j.revoke_signing_key(former)
    j.deploy(version, HASH)


def deleted(j: Journey) -> None:
    """The project is deleted, with more rows than the request itself deletes."""
    host = j.host()
    j.deploy(j.author(), MASK)
    host.stop()
    j.stack.look_into("fill", environment_id=j.environment, rows=4500)
    j.delete()


def deleted_at_once(j: Journey) -> None:
    """A small project is deleted, with its purge in the same request."""
    host = j.host()
    j.deploy(j.author(), MASK)
    host.stop()
    j.delete()
