"""Changes that a deployment makes to its agents: one comparison per base deployment."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.utils.safestring import SafeString

from apps.approvals.models import Approval
from apps.console.diff_html import SHOWN_LINES, diff_html
from apps.console.rollout import count_agents
from apps.core.ids import parse_id
from apps.core.line_diff import LineDiff, line_diff
from apps.deployments.models import ConfigBundle, Deployment
from apps.pipelines.models import PipelineVersion
from apps.runtime.config.diff import config_changes
from apps.runtime.spec import Compilation, compile_spec, semantic_diff

FOLD = 50
"""Lists of changes longer than this begin with counts per kind."""
MAX_SENTENCES = 1_000
"""Maximum sentences of one comparison on a page."""
WHOLE_GROUPS = 8
"""Maximum bases with a line diff on one page; others link to a page of their own."""
NAMED_AGENTS = 20
NOTHING = "nothing"
"""The key of the group of agents that run nothing yet."""
LONGEST = 10_000_000
"""More lines than any valid text has."""

_MANY = {
    "lane_added": "lanes are new",
    "lane_removed": "lanes are removed",
    "lane_kind_changed": "lanes change their kind",
    "capacity_changed": "lanes change their capacity",
    "role_added": "roles are new",
    "role_removed": "roles are removed",
    "role_kind_changed": "roles change their kind",
    "stage_added": "stages are new",
    "stage_removed": "stages are removed",
    "stage_moved": "stages change their placement",
    "op_changed": "operations change",
    "depends_on_changed": "stages change their dependencies",
    "endpoint_added": "endpoints are new",
    "endpoint_removed": "endpoints are removed",
    "policy_changed": "policies change",
    "hash_key_changed": "hash keys change",
    "rx_changed": "roles change their input lanes",
    "tx_changed": "roles change their output lanes",
    "setting_added": "settings are new",
    "setting_removed": "settings are removed",
    "setting_changed": "settings change their value",
    "rule_added": "rules are new",
    "rule_removed": "rules are removed",
    "rule_changed": "rules are replaced",
}


@dataclass(frozen=True, slots=True)
class ChangeList:
    """Semantic changes as sentences; long lists are collapsed and begin with counts."""

    sentences: Sequence[str]
    summary: Sequence[str] = ()
    left_out: int = 0
    """Number of omitted sentences; the line diff covers them."""

    @property
    def any(self) -> bool:
        return bool(self.sentences)


def change_list(changes: Iterable[Any]) -> ChangeList:
    """Build the list from `changes` with a `kind` and a `text`."""
    found = list(changes)
    if len(found) <= FOLD:
        return ChangeList([change.text for change in found])
    counts = Counter(change.kind for change in found)
    few = [change.text for change in found if counts[change.kind] == 1]
    many = [
        f"{count} {_MANY.get(kind, kind.replace('_', ' ') + ' changes')}" for kind, count in counts.items() if count > 1
    ]
    texts = [change.text for change in found[:MAX_SENTENCES]]
    return ChangeList(texts, ["; ".join(many) + ".", *few[:FOLD]], len(found) - len(texts))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of a text: its line diff as HTML, empty when it is too long for the page."""

    added: int
    removed: int
    html: SafeString

    @property
    def changed(self) -> bool:
        return bool(self.added or self.removed)


def _comparison(diff: LineDiff, most: int) -> Comparison:
    shown = diff.added + diff.removed <= most
    return Comparison(diff.added, diff.removed, diff_html(diff) if shown and diff.changed else SafeString(""))


@dataclass(frozen=True, slots=True)
class Group:
    """The agents with the same base, and what changes for them.

    `key` identifies the group in links: the base deployment's id, or `nothing`. `spec` and `config` are None when the
    comparison is on a page of its own.
    """

    key: str
    base: Deployment | None
    same_version: bool
    base_deleted: bool
    agents: int
    names: Sequence[str]
    changes: bool
    gained: Sequence[str]
    lost: Sequence[str]
    meaning: ChangeList = field(default_factory=lambda: ChangeList(()))
    settings: ChangeList = field(default_factory=lambda: ChangeList(()))
    spec: Comparison | None = None
    config: Comparison | None = None

    @property
    def is_new(self) -> bool:
        """True if these agents have no base deployment."""
        return self.base is None and not self.base_deleted

    @property
    def more_names(self) -> int:
        return self.agents - len(self.names)

    @property
    def who(self) -> str:
        """`2 agents`."""
        return count_agents(self.agents)

    @property
    def state(self) -> str:
        """Verb for the base's state on these agents."""
        if self.base is None:
            return ""
        return "are being updated to" if self.base.status in ("building", "deploying") else "run"


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of an approval by base; groups with changes come first."""

    groups: Sequence[Group]
    agents: int
    headline: str
    gained: Sequence[str]
    compilation: Compilation | None
    config: Mapping[str, Any] | None


def config_text(config: Mapping[str, Any]) -> str:
    """Format a configuration for reviewers. JSON escapes its control characters."""
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)


def _headline(total: int, changing: int, new: int) -> str:
    if new == total:
        return f"New on {count_agents(total)}."
    parts = []
    if changing:
        parts.append(f"{changing} of {count_agents(total)} change{'s' if changing == 1 else ''}")
    if new:
        parts.append(f"new on {new}")
    if not parts:
        return "No changes: every agent already runs this."
    same = total - changing - new
    if same:
        parts.append(f"{same} {'does' if same == 1 else 'do'} not change")
    return f"{'; '.join(parts)[0].upper()}{'; '.join(parts)[1:]}."


def changes_of(
    approval: Approval,
    base: Mapping[str, str | None],
    deployment: Deployment,
    names: Mapping[str, str],
    *,
    only: str | None = None,
) -> Changes:
    """Compare `deployment` with the base of each of its targets.

    Targets whose bases have the same spec and configuration form one group. The first `WHOLE_GROUPS` groups get a line diff, up
    to `SHOWN_LINES` lines in total. With `only`, just the group of that key gets one, without a limit.
    """
    wanted = {pk for text in set(base.values()) if text and (pk := parse_id(text)) is not None}
    bases = {str(row.pk): row for row in Deployment.objects.filter(pk__in=wanted)}
    members: dict[tuple[str, str] | None, list[str]] = {}
    first: dict[tuple[str, str] | None, str | None] = {}
    for agent_id in approval.target_agent_ids:
        stands_on = base.get(agent_id)
        row = bases.get(stands_on or "")
        # a base whose row was deleted can't be compared; it differs from no base
        key = None if stands_on is None else ((row.spec_hash, row.config_hash) if row else (stands_on, ""))
        members.setdefault(key, []).append(agent_id)
        first.setdefault(key, stands_on)
    same = (deployment.spec_hash, deployment.config_hash)
    order = sorted(members, key=lambda key: (key == same, key is None, -len(members[key]), key or ("", "")))
    compared = [key for key in order if key != same][:WHOLE_GROUPS]
    if only is not None:
        compared = [key for key in order if (first[key] or NOTHING) == only]
    rows = [deployment, *(bases[text] for key in compared if (text := first[key]) in bases)]
    versions = {v.pk: v for v in PipelineVersion.objects.filter(pk__in={row.version_id for row in rows})}
    bundles = {b.pk: b for b in ConfigBundle.objects.filter(pk__in={row.bundle_id for row in rows})}
    version, bundle = versions.get(deployment.version_id), bundles.get(deployment.bundle_id)
    compilation = compile_spec(version.spec) if version is not None else None
    groups = []
    left = SHOWN_LINES if only is None else LONGEST
    for key in order:
        text = first[key]
        row = bases.get(text or "")
        group_key = text or NOTHING
        old_version: PipelineVersion | None = versions.get(row.version_id) if row else None
        old_bundle: ConfigBundle | None = bundles.get(row.bundle_id) if row else None
        had = set(row.capabilities if row else ())
        has = set(approval.capabilities)
        shown = {}
        if key in compared and left > 0 and version is not None and bundle is not None and compilation is not None:
            shown = _compare(old_version, old_bundle, version, bundle, compilation, left)
            left -= sum(each.added + each.removed for each in (shown["spec"], shown["config"]))
        named = sorted(names.get(agent_id, "removed") for agent_id in members[key])
        groups.append(
            Group(
                key=group_key,
                base=row,
                same_version=row is not None and row.version_id == deployment.version_id,
                base_deleted=text is not None and row is None,
                agents=len(members[key]),
                names=named[:NAMED_AGENTS],
                changes=key != same,
                gained=sorted(has - had),
                lost=sorted(had - has),
                **shown,
            )
        )
    total = len(approval.target_agent_ids)
    new = sum(group.agents for group in groups if group.is_new)
    changing = sum(group.agents for group in groups if group.changes) - new
    return Changes(
        groups=groups,
        agents=total,
        headline=_headline(total, changing, new),
        gained=sorted({name for group in groups for name in group.gained}),
        compilation=compilation,
        config=bundle.config if bundle is not None else None,
    )


def _compare(
    old_version: PipelineVersion | None,
    old_bundle: ConfigBundle | None,
    version: PipelineVersion,
    bundle: ConfigBundle,
    compilation: Compilation,
    most: int,
) -> dict[str, Any]:
    same_spec = old_version is not None and old_version.spec_hash == version.spec_hash
    same_config = old_bundle is not None and old_bundle.config_hash == bundle.config_hash
    old_spec = old_version.spec if old_version else ""
    old_config = config_text(old_bundle.config) if old_bundle else ""
    new_config = config_text(bundle.config)
    meaning: Sequence[Any] = ()
    if not same_spec:
        meaning = semantic_diff(compile_spec(old_version.spec) if old_version else None, compilation)
    spec_diff = line_diff(old_spec, version.spec) if not same_spec else line_diff("", "")
    config_diff = line_diff(old_config, new_config) if not same_config else line_diff("", "")
    return {
        "meaning": change_list(meaning),
        "settings": change_list(
            [] if same_config or old_bundle is None else config_changes(old_bundle.config, bundle.config)
        ),
        "spec": _comparison(spec_diff, most),
        "config": _comparison(config_diff, most),
    }


def names_of(targets: Iterable[tuple[uuid.UUID, str]]) -> dict[str, str]:
    """{agent id: its name} of (id, name) pairs."""
    return {str(agent_id): name for agent_id, name in targets}
