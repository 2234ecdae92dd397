"""Where records come from and go to: one adapter a side, or one for each lane."""

from __future__ import annotations

import re
from collections.abc import Mapping

from apps.runtime.config.findings import Found, check_whole, object_at, refuse_unknown
from apps.runtime.config.shape import HTTP_PATH, LOOPBACK, MAX_PATH
from apps.runtime.ops import url_problem
from apps.runtime.ops.schema import pointer_of
from apps.runtime.spec.plan import Plan


def adapters_of(config: Mapping[str, object], plan: Plan, side: str) -> dict[str, Mapping[str, object]]:
    """Lane → adapter of one side (`ingress` or `egress`) of a config in which `check_config` finds nothing wrong with `plan`."""
    adapters = config.get("adapters")
    given = adapters.get(side) if isinstance(adapters, dict) else None
    if not isinstance(given, dict):
        return {}
    lanes = given.get("lanes")
    if isinstance(lanes, dict):
        return dict(lanes)
    return {_lanes(plan, side)[0]: given}


def _lanes(plan: Plan, side: str) -> tuple[str, ...]:
    return plan.ingress if side == "ingress" else plan.egress


def check_adapters(value: object, at: str, plan: Plan, found: Found) -> None:
    """Report every problem with `adapters`, also lanes that the plan does not have, or that must be distinguished."""
    adapters = object_at(value, at, found)
    if adapters is None:
        return
    refuse_unknown(adapters, ("ingress", "egress"), at, found)
    for side in ("ingress", "egress"):
        if side in adapters:
            _one_side(adapters[side], side, f"{at}/{side}", plan, found)


def _one_side(value: object, side: str, at: str, plan: Plan, found: Found) -> None:
    lanes = _lanes(plan, side)
    if not isinstance(value, dict) or "lanes" not in value:
        if len(lanes) > 1:
            found.add(at, "lanes_needed", f'Write {{"lanes": {{...}}}} with one adapter each for {", ".join(lanes)}.')
        _adapter(value, side, at, found)
        return
    refuse_unknown(value, ("lanes",), at, found)
    named = object_at(value["lanes"], f"{at}/lanes", found)
    used: dict[object, str] = {}
    for name, adapter in (named or {}).items():
        here = pointer_of(f"{at}/lanes", name)
        if name not in lanes:
            found.add(here, "unknown_lane", f"The version has no {side} of that name. It has " + ", ".join(lanes) + ".")
        _adapter(adapter, side, here, found)
        _used_once(adapter, side, here, used, found)


def _used_once(adapter: object, side: str, at: str, used: dict[object, str], found: Found) -> None:
    """No two lanes read one file or listen on one port, and no two write one file: their records would mix or get lost."""
    if not isinstance(adapter, dict):
        return
    key = "path" if adapter.get("type") == "file" else "port" if side == "ingress" else None
    value = adapter.get(key) if key is not None else None
    if isinstance(value, str | int):
        former = used.setdefault((key, value), at)
        if former != at:
            found.add(f"{at}/{key}", "used_twice", f"{former} has it too.")


def _adapter(value: object, side: str, at: str, found: Found) -> None:
    adapter = object_at(value, at, found)
    if adapter is None:
        return
    kind = adapter.get("type")
    if kind == "file":
        refuse_unknown(adapter, ("type", "path", "follow") if side == "ingress" else ("type", "path"), at, found)
        _file_path(adapter.get("path"), f"{at}/path", found)
        if side == "ingress" and not isinstance(adapter.get("follow", True), bool):
            found.add(f"{at}/follow", "wrong_type", "true or false is expected.")
    elif kind == "http" and side == "ingress":
        refuse_unknown(adapter, ("type", "host", "port", "path"), at, found)
        if adapter.get("host", LOOPBACK[0]) not in LOOPBACK:
            found.add(
                f"{at}/host",
                "not_loopback",
                "An ingress listens on loopback only: " + ", ".join(LOOPBACK) + ".",
            )
        check_whole(adapter.get("port"), 1, 65535, f"{at}/port", found)
        path = adapter.get("path", "/")
        if not isinstance(path, str) or not re.fullmatch(HTTP_PATH, path):
            found.add(f"{at}/path", "bad_value", "A path begins with / and needs no percent-encoding.")
    elif kind == "http":
        refuse_unknown(adapter, ("type", "url"), at, found)
        url = adapter.get("url")
        problem = url_problem(url) if isinstance(url, str) else "A URL is expected."
        if problem is not None:
            found.add(f"{at}/url", "bad_url", problem)
    else:
        found.add(f"{at}/type", "bad_value", "A type is file or http.")


def _file_path(value: object, at: str, found: Found) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATH:
        found.add(at, "bad_path", f"A path of 1 to {MAX_PATH} characters is expected.")
    elif not value.isprintable():
        found.add(at, "bad_path", "A path has no control characters.")
    elif ".." in re.split(r"[/\\]", value):
        found.add(at, "path_escape", "A path has no '..' in it.")
