"""A row of every kind in an environment, written directly: for tests that try every page or every route."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from apps.access.models import Membership, MemberStatus, User
from apps.access.roles import Role
from apps.agents.models import Agent, EnrollmentToken
from apps.approvals.models import Approval
from apps.approvals.policy import policy_of
from apps.approvals.selectors import digest_of
from apps.blobs.models import StoredBlob
from apps.core import clock
from apps.core.ids import new_id
from apps.deployments.models import ConfigBundle, Deployment, Target
from apps.jobs.models import Job
from apps.limits.models import RateOverride
from apps.pipelines.models import PipelineDraft, PipelineVersion
from apps.signing.models import SigningKey
from apps.tenancy.models import Environment
from tests.flows.world import SPEC, config

ALL_AT_ONCE = {"type": "all_at_once"}


def fill(environment: Environment, requester: User, strategy: Mapping[str, Any] = ALL_AT_ONCE) -> dict[str, Any]:
    """Add a row of every kind below `environment`; return their ids by the names that paths of the API have for them."""
    organization, now = environment.project.organization, clock.now()
    number = PipelineVersion.objects.filter(environment=environment).count() + 1
    spec_hash, config_hash = f"sha256:{new_id().hex * 2}", f"sha256:{new_id().hex * 2}"
    by = {"requested_by": requester.pk, "requested_by_name": str(requester)}
    draft = PipelineDraft.objects.create(environment=environment, name="orders", spec=SPEC)
    version = PipelineVersion.objects.create(
        environment=environment, number=number, name="orders", spec_hash=spec_hash, target="SingleRing", spec=SPEC
    )
    built_of = {
        "version_id": version.pk,
        "version_number": number,
        "pipeline_name": "orders",
        "spec_hash": spec_hash,
        "config_hash": config_hash,
    }
    bundle = ConfigBundle.objects.create(environment=environment, config=config("a:drop"), **built_of)
    agent, _ = (Agent.objects.create(environment=environment, name=f"{new_id()}", hostname="till") for _ in range(2))
    policy, approval_id, deployment_id = policy_of(environment), new_id(), new_id()
    asked = {
        "spec_hash": spec_hash,
        "config_hash": config_hash,
        "capabilities": [],
        "strategy": dict(strategy),
    }
    targets, base = [str(agent.pk)], {str(agent.pk): None}
    approval = Approval(
        id=approval_id,
        environment=environment,
        action="deploy",
        deployment_id=deployment_id,
        policy=policy,
        required_approvals=policy["required_approvals"],
        expires_at=now + dt.timedelta(hours=1),
        target_agent_ids=targets,
        base=base,
        credential="credential",
        **by,
        **asked,
    )
    approval.shown_digest = digest_of(approval, base)
    approval.save(force_insert=True)
    deployment = Deployment.objects.create(
        id=deployment_id,
        environment=environment,
        bundle_id=bundle.pk,
        approval_id=approval_id,
        target_selector={"all": True},
        strategy=dict(strategy),
        **by,
        **built_of,
    )
    Target.objects.create(deployment=deployment, agent_id=agent.pk, agent_name=agent.name)
    token = EnrollmentToken.objects.create(
        environment=environment, sha256=new_id().hex * 2, public_id="byt_enr_x", expires_at=now + dt.timedelta(hours=1)
    )
    job = Job.objects.create(
        organization=organization, environment=environment, type="spec_ingest", subject_id=draft.pk
    )
    StoredBlob.objects.create(environment=environment, sha256=new_id().hex * 2, size=1)
    RateOverride.objects.get_or_create(organization=organization)
    members = {
        project: Membership.objects.create(
            organization=organization,
            project=project,
            email=f"{new_id()}@example.com",
            role=Role.VIEWER,
            status=MemberStatus.INVITED,
        )
        for project in (None, environment.project)
    }
    return {
        "org_id": organization.pk,
        "project_id": environment.project_id,
        "environment_id": environment.pk,
        "draft_id": draft.pk,
        "version_id": version.pk,
        "bundle_id": bundle.pk,
        "agent_id": agent.pk,
        "approval_id": approval.pk,
        "deployment_id": deployment.pk,
        "token_id": token.pk,
        "job_id": job.pk,
        "kid": SigningKey.objects.filter(organization=organization).values_list("kid", flat=True)[0],
        "member_id": members[None].pk,
        "project_member_id": members[environment.project].pk,
    }
