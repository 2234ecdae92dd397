"""What changed in meaning between two configurations, as sentences a reviewer can read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "rule_removed",
    "rule_added",
    "rule_changed",
    "rules_reordered",
    "setting_removed",
    "setting_added",
    "setting_changed",
]


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One change. `subject` names the place (`stages.redact.rules`), `text` is a sentence."""

    kind: Kind
    subject: str
    text: str


def config_changes(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[ConfigChange]:
    """What `new` changes against `old` (None: there was no configuration), in linear time.

    Redaction rules are matched by the field they are about, everything else by its path.
    """
    changes = list(_rules(old or {}, new))
    before, after = dict(_settings(old or {})), dict(_settings(new))
    for path, value in after.items():
        if path not in before:
            changes.append(ConfigChange("setting_added", path, f"{path} is {_shown(value)}; it was not set."))
        elif before[path] != value:
            text = f"{path} is {_shown(value)}; it was {_shown(before[path])}."
            changes.append(ConfigChange("setting_changed", path, text))
    for path, value in before.items():
        if path not in after:
            text = f"{path} is no longer set; it was {_shown(value)}."
            changes.append(ConfigChange("setting_removed", path, text))
    return changes


def _rules_of(config: Mapping[str, Any]) -> dict[str, list[str]]:
    stages = config.get("stages")
    if not isinstance(stages, Mapping):
        return {}
    found = {}
    for name, stage in stages.items():
        rules = stage.get("rules") if isinstance(stage, Mapping) else None
        if isinstance(rules, list):
            found[str(name)] = [str(rule) for rule in rules]
    return found


def _rules(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[ConfigChange]:
    was, now = _rules_of(old), _rules_of(new)
    for stage in dict.fromkeys([*now, *was]):
        before, after = was.get(stage, []), now.get(stage, [])
        if before == after:
            continue
        subject = f"stages.{stage}.rules"
        kept = set(before) & set(after)
        removed = [rule for rule in before if rule not in kept]
        added = [rule for rule in after if rule not in kept]
        replaced = {_field(rule): rule for rule in added}
        for rule in removed:
            other = replaced.pop(_field(rule), None)
            if other is None:
                yield ConfigChange("rule_removed", subject, f"Stage {stage}: rule {rule} is gone.")
            else:
                yield ConfigChange("rule_changed", subject, f"Stage {stage}: rule {other} replaces {rule}.")
        left = set(replaced.values())
        for rule in added:
            if rule in left:
                yield ConfigChange("rule_added", subject, f"Stage {stage}: rule {rule} is new.")
        if not removed and not added:
            yield ConfigChange("rules_reordered", subject, f"Stage {stage}: the same rules in another order.")


def _field(rule: str) -> str:
    return rule.partition(":")[0]


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf that is no rule; an empty object or list is a leaf."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and value:
            deeper = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
            waiting += [pair for pair in reversed(deeper) if not _is_rules(pair[0], pair[1])]
        elif path:
            yield path, value


def _is_rules(path: str, value: Any) -> bool:
    return path.startswith("stages.") and path.count(".") == 2 and path.endswith(".rules") and isinstance(value, list)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:200]} …"
