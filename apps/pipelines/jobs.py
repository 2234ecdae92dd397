"""The job `spec_ingest`: parses a draft's text and stores the result on the draft."""

from __future__ import annotations

from django.db import transaction

from apps.jobs import registry
from apps.jobs.registry import JobRun, PermanentJobError
from apps.jobs.services import complete_in_transaction
from apps.pipelines.models import PipelineDraft
from apps.pipelines.services import INGEST_JOB, store_ingest
from apps.runtime.faults import fault_point
from apps.runtime.spec import compile_spec


def run_ingest(run: JobRun) -> str | None:
    """Ingest the edit that the job was queued for.

    Returns a note and stores nothing when the draft was deleted or edited since. Safe to repeat: the result and the job's
    completion are written in one transaction.
    """
    rev = run.payload.get("rev")
    if not isinstance(rev, int):
        raise PermanentJobError("the job names no edit")
    draft = PipelineDraft.objects.filter(pk=run.subject_id, environment__deleted_at__isnull=True).first()
    if draft is None:
        return "no-op: the draft was deleted"
    if draft.rev != rev:
        return f"no-op: edit {rev} was superseded by edit {draft.rev}"
    found = compile_spec(draft.spec)
    fault_point("pipelines.ingest.compiled")
    with transaction.atomic():
        if not store_ingest(draft_id=draft.pk, rev=rev, found=found):
            return f"no-op: edit {rev} was superseded during ingestion"
        complete_in_transaction(run)
        fault_point("pipelines.ingest.before_commit")
    fault_point("pipelines.ingest.after_commit")
    return None


def register() -> None:
    """Register the job."""
    registry.register_handler(
        INGEST_JOB, run_ingest, max_attempts=5, base_seconds=1, cap_seconds=60, timeout_seconds=30
    )
