"""Every problem with a config at once, and its hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import rfc8785

from apps.runtime.config.adapters import check_adapters
from apps.runtime.config.findings import ConfigProblem, Found, check_whole, object_at, refuse_unknown
from apps.runtime.config.secrets import secret_name, secret_value
from apps.runtime.config.shape import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_VALUE,
    MAX_VARIABLES,
    PROFILES,
    REFERENCE,
    TUNING_NUMBERS,
    VARIABLE,
)
from apps.runtime.ops import setting_problems
from apps.runtime.ops.schema import pointer_of
from apps.runtime.spec.plan import Plan


def config_hash(config: object) -> str:
    """`sha256:` and the hex SHA-256 of the RFC 8785 form. Raises ValueError for what has none."""
    return "sha256:" + hashlib.sha256(canonical_config(config)).hexdigest()


def canonical_config(config: object) -> bytes:
    """The RFC 8785 form of `config`.

    Raises ValueError for what has none (big integers, NaN, lone surrogates).
    """
    try:
        return rfc8785.dumps(config)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise ValueError("the config has no canonical form") from error


def check_config(config: object, plan: Plan) -> tuple[ConfigProblem, ...]:
    """Every problem with `config` (parsed JSON) for `plan`, in document order; none when it is good. Never raises."""
    found = Found()
    if not isinstance(config, dict):
        found.add("", "wrong_type", "A config is an object.")
        return found.all()
    _check_values(config, found)
    if found.any:
        return found.all()
    if len(canonical_config(config)) > MAX_BYTES:
        found.add("", "too_large", f"A config has at most {MAX_BYTES} bytes.")
        return found.all()
    parts: dict[str, Callable[[object, str, Found], None]] = {
        "tuning": _tuning,
        "adapters": lambda value, at, to: check_adapters(value, at, plan, to),
        "stages": lambda value, at, to: _stages(value, at, plan, to),
        "environment": check_environment,
    }
    refuse_unknown(config, tuple(parts), "", found)
    for key, check in parts.items():
        if key in config:
            check(config[key], f"/{key}", found)
    if "stages" not in config:
        _stages({}, "/stages", plan, found)
    return found.all()


def _check_values(config: object, found: Found) -> None:
    """What no part of a config may hold: too much depth, odd numbers, text that is not Unicode."""
    level: list[tuple[str, object]] = [("", config)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, object]] = []
        for at, value in level:
            if isinstance(value, dict):
                for key, item in value.items():
                    if not isinstance(key, str):
                        found.add(at, "wrong_type", "A key is a string.")
                        continue
                    _check_text(at, key, found)
                    below.append((pointer_of(at, key), item))
            elif isinstance(value, list):
                below += [(pointer_of(at, number), item) for number, item in enumerate(value)]
            elif isinstance(value, str):
                _check_text(at, value, found)
            elif isinstance(value, int) and not isinstance(value, bool):
                if abs(value) > MAX_INTEGER:
                    found.add(at, "number_out_of_range", "An integer is at most 2^53 - 1 in size.")
            elif isinstance(value, float):
                if value != value or abs(value) == float("inf"):
                    found.add(at, "number_out_of_range", "A number is finite.")
            elif value is not None and not isinstance(value, bool):
                found.add(at, "wrong_type", "This is not JSON.")
        level = below
        if not level:
            return
    found.add(level[0][0], "too_deep", f"A config is nested at most {MAX_DEPTH} deep.")


def _check_text(at: str, text: str, found: Found) -> None:
    if "\x00" in text:
        found.add(at, "bad_text", "Text holds no NUL.")
    elif not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        found.add(at, "bad_text", "Text is Unicode without lone surrogates.")


def _tuning(value: object, at: str, found: Found) -> None:
    tuning = object_at(value, at, found)
    if tuning is None:
        return
    refuse_unknown(tuning, ("profile", *TUNING_NUMBERS), at, found)
    if "profile" in tuning and tuning["profile"] not in PROFILES:
        found.add(f"{at}/profile", "bad_value", "A profile is one of " + ", ".join(PROFILES) + ".")
    for name, most in TUNING_NUMBERS.items():
        if name in tuning:
            check_whole(tuning[name], 1, most, f"{at}/{name}", found)


def _stages(value: object, at: str, plan: Plan, found: Found) -> None:
    stages = object_at(value, at, found)
    if stages is None:
        return
    ops = {stage.id: stage.op for stage in plan.stages}
    for name, settings in stages.items():
        here = pointer_of(at, name)
        if name not in ops:
            found.add(here, "unknown_stage", "The version has no such stage. It has " + ", ".join(ops) + ".")
        else:
            _settings(ops[name], settings, here, found)
    for name, op in ops.items():
        if name not in stages:
            _settings(op, {}, pointer_of(at, name), found)


def _settings(op: str, settings: object, at: str, found: Found) -> None:
    for problem in setting_problems(op, settings):
        found.add(at + problem.pointer, problem.code, problem.message)


def check_environment(value: object, at: str, found: Found) -> None:
    variables = object_at(value, at, found)
    if variables is None:
        return
    if len(variables) > MAX_VARIABLES:
        found.add(at, "too_many", f"At most {MAX_VARIABLES} variables are allowed.")
        return
    for name, item in variables.items():
        here = pointer_of(at, name)
        if not re.fullmatch(VARIABLE, name):
            found.add(here, "bad_name", "A name is letters, digits and _, not beginning with a digit.")
        if isinstance(item, dict):
            refuse_unknown(item, ("secret_ref",), here, found)
            ref = item.get("secret_ref")
            if not isinstance(ref, str) or not re.fullmatch(REFERENCE, ref):
                found.add(f"{here}/secret_ref", "bad_secret_ref", "Write env:NAME or file:NAME.")
            elif ref.startswith("file:") and ".." in ref[5:].split("/"):
                found.add(f"{here}/secret_ref", "path_escape", "A path has no '..' in it.")
        elif not isinstance(item, str):
            found.add(here, "wrong_type", 'A string or {"secret_ref": "env:NAME"} is expected.')
        elif len(item) > MAX_VALUE:
            found.add(here, "too_long", f"A value has at most {MAX_VALUE} characters.")
        else:
            reason = secret_value(item)
            if reason is None and item and secret_name(name):
                reason = "its name says so"
            if reason is not None:
                detail = f'This looks like a secret ({reason}). Write {{"secret_ref": "env:NAME"}} instead.'
                found.add(here, "looks_like_secret", detail)
