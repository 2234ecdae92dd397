"""Reads of drafts and versions."""

from __future__ import annotations

import difflib
import uuid
from dataclasses import dataclass

from apps.access.principals import Principal
from apps.core.errors import NotFound
from apps.pipelines.models import PipelineDraft, PipelineVersion, ScopedQuerySet
from apps.runtime.spec import Change, Compilation, compile_spec, semantic_diff
from apps.tenancy.scope import Scope


def drafts(scope: Scope) -> ScopedQuerySet[PipelineDraft]:
    """The drafts of the scope's environment."""
    return PipelineDraft.objects.filter(environment=scope.here)


def get_draft(scope: Scope, draft_id: uuid.UUID) -> PipelineDraft:
    """One draft of the scope's environment. Raises NotFound."""
    draft = drafts(scope).filter(pk=draft_id).first()
    if draft is None:
        raise NotFound()
    return draft


def versions(scope: Scope) -> ScopedQuerySet[PipelineVersion]:
    """The versions of the scope's environment."""
    return PipelineVersion.objects.filter(environment=scope.here)


def get_version(scope: Scope, version_id: uuid.UUID) -> PipelineVersion:
    """One version of the scope's environment. Raises NotFound."""
    version = versions(scope).filter(pk=version_id).first()
    if version is None:
        raise NotFound()
    return version


def comparable_version(principal: Principal, scope: Scope, version_id: uuid.UUID) -> PipelineVersion:
    """A version of any environment of the scope's project that `principal` may see. Raises NotFound."""
    version = (
        PipelineVersion.objects.visible_to(principal)
        .filter(pk=version_id, environment__project_id=scope.here.project_id)
        .first()
    )
    if version is None:
        raise NotFound()
    return version


def version_before(version: PipelineVersion) -> PipelineVersion | None:
    """The version with the next lower number in the same environment."""
    rows = PipelineVersion.objects.filter(environment_id=version.environment_id, number__lt=version.number)
    return rows.order_by("-number").first()


def latest_version(scope: Scope, name: str | None = None) -> PipelineVersion | None:
    """The newest version of the environment, of the pipeline called `name` if given."""
    rows = versions(scope) if name is None else versions(scope).filter(name=name)
    return rows.order_by("-number").first()


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a text diff: `tag` is `+`, `-` or a space; the numbers are None on the side it is not on."""

    tag: str
    old_number: int | None
    new_number: int | None
    text: str

    def as_dict(self) -> dict[str, object]:
        """`{tag, old, new, text}`."""
        return {"tag": self.tag, "old": self.old_number, "new": self.new_number, "text": self.text}


@dataclass(frozen=True, slots=True)
class SpecDiff:
    """What changed in meaning, and every line of both texts."""

    changes: tuple[Change, ...]
    lines: tuple[DiffLine, ...]

    def as_dict(self) -> dict[str, object]:
        """`{changes, lines}`."""
        return {
            "changes": [change.as_dict() for change in self.changes],
            "lines": [line.as_dict() for line in self.lines],
        }


def diff_specs(old: str | None, new: str) -> SpecDiff:
    """What canonical text `new` changes against `old`; against None all of it is new."""
    former = compile_spec(old) if old is not None else None
    return SpecDiff(semantic_diff(former, compile_spec(new)), tuple(line_diff(old or "", new)))


def line_diff(old: str, new: str) -> list[DiffLine]:
    """Every line of both texts in order, marked as kept, removed or added."""
    before, after = old.splitlines(), new.splitlines()
    lines: list[DiffLine] = []
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    for _, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if before[old_from:old_to] == after[new_from:new_to]:
            kept = zip(range(old_from, old_to), range(new_from, new_to), strict=True)
            lines += [DiffLine(" ", i + 1, j + 1, before[i]) for i, j in kept]
            continue
        lines += [DiffLine("-", number + 1, None, before[number]) for number in range(old_from, old_to)]
        lines += [DiffLine("+", None, number + 1, after[number]) for number in range(new_from, new_to)]
    return lines


@dataclass(frozen=True, slots=True)
class Preview:
    """What promoting a draft now would give: its compilation, and what that changes against the newest version."""

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
