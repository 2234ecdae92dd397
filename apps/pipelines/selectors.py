"""Reads of drafts and versions."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from apps.access.principals import Principal
from apps.core.db import require_row
from apps.core.line_diff import DiffLine, line_diff
from apps.core.visibility import ScopedQuerySet
from apps.pipelines.models import PipelineDraft, PipelineVersion
from apps.runtime.spec import Change, Compilation, compile_spec, semantic_diff
from apps.tenancy.scope import Scope


def drafts(scope: Scope) -> ScopedQuerySet[PipelineDraft]:
    """The drafts of the scope's environment."""
    return PipelineDraft.objects.filter(environment=scope.require_environment())


def get_draft(scope: Scope, draft_id: uuid.UUID) -> PipelineDraft:
    """One draft of the scope's environment. Raises NotFound."""
    return require_row(drafts(scope), pk=draft_id)


def versions(scope: Scope) -> ScopedQuerySet[PipelineVersion]:
    """The versions of the scope's environment."""
    return PipelineVersion.objects.filter(environment=scope.require_environment())


def get_version(scope: Scope, version_id: uuid.UUID) -> PipelineVersion:
    """One version of the scope's environment. Raises NotFound."""
    return require_row(versions(scope), pk=version_id)


def comparable_version(principal: Principal, scope: Scope, version_id: uuid.UUID) -> PipelineVersion:
    """A version of any environment of the scope's project that `principal` may see. Raises NotFound."""
    return require_row(
        PipelineVersion.objects.visible_to(principal),
        pk=version_id,
        environment__project_id=scope.require_environment().project_id,
    )


def version_before(version: PipelineVersion) -> PipelineVersion | None:
    """The version with the next lower number in the same environment."""
    rows = PipelineVersion.objects.filter(environment_id=version.environment_id, number__lt=version.number)
    return rows.order_by("-number").first()


def latest_version(scope: Scope, name: str | None = None) -> PipelineVersion | None:
    """The newest version of the environment; only of the pipeline `name` if given."""
    rows = versions(scope) if name is None else versions(scope).filter(name=name)
    return rows.order_by("-number").first()


@dataclass(frozen=True, slots=True)
class SpecDiff:
    """Semantic changes between two specs, and a line diff of their texts."""

    changes: tuple[Change, ...]
    lines: tuple[DiffLine, ...]

    def as_dict(self) -> dict[str, object]:
        """`{changes, lines}`."""
        return {
            "changes": [change.as_dict() for change in self.changes],
            "lines": [line.as_dict() for line in self.lines],
        }


def diff_specs(old: str | None, new: str) -> SpecDiff:
    """Compare canonical text `new` with `old`. Without `old`, everything is an addition."""
    former = compile_spec(old) if old is not None else None
    return SpecDiff(semantic_diff(former, compile_spec(new)), line_diff(old or "", new).lines)


@dataclass(frozen=True, slots=True)
class Preview:
    """Result of promoting a draft now: its compilation, and the changes since the newest version."""

    compilation: Compilation
    against: PipelineVersion | None
    diff: SpecDiff | None


def preview(scope: Scope, draft: PipelineDraft) -> Preview:
    """Compile the draft's text and store nothing. `diff` is None while there are errors."""
    found = compile_spec(draft.spec)
    if found.canonical is None:
        return Preview(found, None, None)
    latest = latest_version(scope, found.name)
    return Preview(found, latest, diff_specs(latest.spec if latest is not None else None, found.canonical))
