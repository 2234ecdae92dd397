"""The runtime configuration of a bundle: its published schema, every problem at once, and its hash.

`CONFIG_SCHEMA` says the shape to tools. `check_config` is what decides: the same shape, and what a schema
can't say (do the stages fit the plan, does a value look like a secret, can the file path leave its
directory).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import rfc8785

from apps.runtime.config_secrets import secret_name, secret_value
from apps.runtime.ops import KINDS, check_settings, url_problem
from apps.runtime.ops.rules import MAX_RULE_LENGTH, MAX_RULES
from apps.runtime.ops.schema import pointer_of
from apps.runtime.spec.plan import Plan

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1
MAX_PROBLEMS = 200
PROFILES = ("default", "low-latency", "isolated-core")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

_TUNING_NUMBERS = {"batch_size": 65_536, "buffer_records": 1_048_576}
_MAX_PATH = 1024
_MAX_VALUE = 4096
_MAX_VARIABLES = 256
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
_REFERENCE = r"(env:[A-Za-z_][A-Za-z0-9_]{0,127}|file:[^\x00-\x1f\x7f]{1,1024})"
_STAGE_ID = r"[a-z0-9][a-z0-9_-]{0,62}"
_HTTP_PATH = r"/[A-Za-z0-9._~/-]{0,255}"

_FILE_PATH = {
    "type": "string",
    "minLength": 1,
    "maxLength": _MAX_PATH,
    "description": "Under the agent's data directory, unless the host allows more.",
}


def _closed(properties: Mapping[str, object], *required: str, **more: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


#: JSON Schema 2020-12 of a config. Every top key is optional; what is not named here is refused.
CONFIG_SCHEMA: dict[str, object] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "ByteOr Cloud runtime configuration, version 1",
    **_closed(
        {
            "tuning": _closed(
                {
                    "profile": {"enum": list(PROFILES)},
                    **{
                        name: {"type": "integer", "minimum": 1, "maximum": most}
                        for name, most in _TUNING_NUMBERS.items()
                    },
                },
                description="Wishes: an agent reports what it could apply.",
            ),
            "adapters": _closed(
                {
                    "ingress": {
                        "oneOf": [
                            _closed(
                                {
                                    "type": {"const": "file"},
                                    "path": _FILE_PATH,
                                    "follow": {
                                        "type": "boolean",
                                        "description": "Wait for more at the end (true).",
                                    },
                                },
                                "type",
                                "path",
                            ),
                            _closed(
                                {
                                    "type": {"const": "http"},
                                    "host": {"enum": list(LOOPBACK)},
                                    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                                    "path": {"type": "string", "pattern": f"^{_HTTP_PATH}$"},
                                },
                                "type",
                                "port",
                            ),
                        ]
                    },
                    "egress": {
                        "oneOf": [
                            _closed({"type": {"const": "file"}, "path": _FILE_PATH}, "type", "path"),
                            _closed(
                                {
                                    "type": {"const": "http"},
                                    "url": {"type": "string", "pattern": "^https?://", "maxLength": 2048},
                                },
                                "type",
                                "url",
                            ),
                        ]
                    },
                },
                description="Without adapters the pipeline activates and idles.",
            ),
            "stages": {
                "type": "object",
                "propertyNames": {"pattern": f"^{_STAGE_ID}$"},
                "additionalProperties": _closed(
                    {
                        "rules": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MAX_RULES,
                            "items": {"type": "string", "maxLength": MAX_RULE_LENGTH},
                        },
                        "schema": {"type": ["object", "boolean"]},
                    }
                ),
            },
            "environment": {
                "type": "object",
                "maxProperties": _MAX_VARIABLES,
                "propertyNames": {"pattern": f"^{_VARIABLE}$"},
                "additionalProperties": {
                    "oneOf": [
                        {"type": "string", "maxLength": _MAX_VALUE},
                        _closed({"secret_ref": {"type": "string", "pattern": f"^{_REFERENCE}$"}}, "secret_ref"),
                    ]
                },
                "description": "What looks like a secret is refused; a secret_ref is resolved on the host.",
            },
        }
    ),
}


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """What is wrong at `pointer` (RFC 6901). `detail` never repeats a value that looks like a secret."""

    pointer: str
    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        """`{pointer, code, detail}`."""
        return asdict(self)


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


def check_config(config: object, plan: Plan | None) -> tuple[ConfigProblem, ...]:
    """Every problem with `config` (parsed JSON), in document order; none when it is good. Never raises.

    With a plan the stages are checked against it: unknown ids, settings an op does not take, and those it
    misses.
    """
    found = _Found()
    if not isinstance(config, dict):
        found.add("", "wrong_type", "A config is an object.")
        return found.all()
    _check_values(config, found)
    if found.any:
        return found.all()
    try:
        size = len(canonical_config(config))
    except ValueError:
        found.add("", "not_canonical", "The config has no canonical form.")
        return found.all()
    if size > MAX_BYTES:
        found.add("", "too_large", f"A config has at most {MAX_BYTES} bytes.")
        return found.all()
    parts: dict[str, Callable[[object, str, _Found], None]] = {
        "tuning": _tuning,
        "adapters": _adapters,
        "stages": lambda value, at, to: _stages(value, at, plan, to),
        "environment": _environment,
    }
    _unknown(config, tuple(parts), "", found)
    for key, check in parts.items():
        if key in config:
            check(config[key], f"/{key}", found)
    if plan is not None and "stages" not in config:
        _stages({}, "/stages", plan, found)
    return found.all()


class _Found:
    def __init__(self) -> None:
        self._problems: list[ConfigProblem] = []

    @property
    def any(self) -> bool:
        return bool(self._problems)

    def add(self, pointer: str, code: str, detail: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(ConfigProblem(pointer, code, detail))

    def all(self) -> tuple[ConfigProblem, ...]:
        return tuple(self._problems)


def _check_values(config: object, found: _Found) -> None:
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


def _check_text(at: str, text: str, found: _Found) -> None:
    if "\x00" in text:
        found.add(at, "bad_text", "Text holds no NUL.")
    elif not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        found.add(at, "bad_text", "Text is Unicode without lone surrogates.")


def _unknown(value: Mapping[str, object], known: tuple[str, ...], at: str, found: _Found) -> None:
    for key in value:
        if key not in known:
            found.add(pointer_of(at, key), "unknown_key", "Known here: " + ", ".join(known) + ".")


def _object(value: object, at: str, found: _Found) -> Mapping[str, object] | None:
    if isinstance(value, dict):
        return value
    found.add(at, "wrong_type", "An object is expected.")
    return None


def _tuning(value: object, at: str, found: _Found) -> None:
    tuning = _object(value, at, found)
    if tuning is None:
        return
    _unknown(tuning, ("profile", *_TUNING_NUMBERS), at, found)
    if "profile" in tuning and tuning["profile"] not in PROFILES:
        found.add(f"{at}/profile", "bad_value", "A profile is one of " + ", ".join(PROFILES) + ".")
    for name, most in _TUNING_NUMBERS.items():
        if name in tuning:
            _whole(tuning[name], 1, most, f"{at}/{name}", found)


def _whole(value: object, least: int, most: int, at: str, found: _Found) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        found.add(at, "bad_value", f"A whole number from {least} to {most} is expected.")


def _adapters(value: object, at: str, found: _Found) -> None:
    adapters = _object(value, at, found)
    if adapters is None:
        return
    _unknown(adapters, ("ingress", "egress"), at, found)
    for side in ("ingress", "egress"):
        if side in adapters:
            _adapter(adapters[side], side, f"{at}/{side}", found)


def _adapter(value: object, side: str, at: str, found: _Found) -> None:
    adapter = _object(value, at, found)
    if adapter is None:
        return
    kind = adapter.get("type")
    if kind == "file":
        _unknown(adapter, ("type", "path", "follow") if side == "ingress" else ("type", "path"), at, found)
        _file_path(adapter.get("path"), f"{at}/path", found)
        if side == "ingress" and not isinstance(adapter.get("follow", True), bool):
            found.add(f"{at}/follow", "wrong_type", "true or false is expected.")
    elif kind == "http" and side == "ingress":
        _unknown(adapter, ("type", "host", "port", "path"), at, found)
        if adapter.get("host", LOOPBACK[0]) not in LOOPBACK:
            found.add(
                f"{at}/host",
                "not_loopback",
                "An ingress listens on loopback only: " + ", ".join(LOOPBACK) + ".",
            )
        _whole(adapter.get("port"), 1, 65535, f"{at}/port", found)
        path = adapter.get("path", "/")
        if not isinstance(path, str) or not re.fullmatch(_HTTP_PATH, path):
            found.add(f"{at}/path", "bad_value", "A path begins with / and needs no percent-encoding.")
    elif kind == "http":
        _unknown(adapter, ("type", "url"), at, found)
        url = adapter.get("url")
        problem = url_problem(url) if isinstance(url, str) else "A URL is expected."
        if problem is not None:
            found.add(f"{at}/url", "bad_url", problem)
    else:
        found.add(f"{at}/type", "bad_value", "A type is file or http.")


def _file_path(value: object, at: str, found: _Found) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_PATH:
        found.add(at, "bad_path", f"A path of 1 to {_MAX_PATH} characters is expected.")
    elif not value.isprintable():
        found.add(at, "bad_path", "A path has no control characters.")
    elif ".." in re.split(r"[/\\]", value):
        found.add(at, "path_escape", "A path has no '..' in it.")


def _stages(value: object, at: str, plan: Plan | None, found: _Found) -> None:
    stages = _object(value, at, found)
    if stages is None:
        return
    ops = {stage.id: stage.op for stage in plan.stages} if plan is not None else None
    for name, settings in stages.items():
        here = pointer_of(at, name)
        if ops is not None and name not in ops:
            found.add(here, "unknown_stage", "The version has no such stage. It has " + ", ".join(ops) + ".")
        elif not re.fullmatch(_STAGE_ID, name):
            found.add(here, "bad_stage_id", "This can't be the id of a stage.")
        else:
            # Without a plan the widest op is assumed, whose settings are then all optional.
            op = ops[name] if ops is not None else "dataguard_fused"
            for problem in check_settings(op if op in KINDS else "identity", settings):
                if ops is not None or not problem.code.endswith("_missing"):
                    found.add(here + problem.pointer, problem.code, problem.message)
    for name, op in (ops or {}).items():
        if name not in stages and op in KINDS:
            for problem in check_settings(op, {}):
                found.add(pointer_of(at, name), problem.code, problem.message)


def _environment(value: object, at: str, found: _Found) -> None:
    variables = _object(value, at, found)
    if variables is None:
        return
    if len(variables) > _MAX_VARIABLES:
        found.add(at, "too_many", f"At most {_MAX_VARIABLES} variables are allowed.")
        return
    for name, item in variables.items():
        here = pointer_of(at, name)
        if not re.fullmatch(_VARIABLE, name):
            found.add(here, "bad_name", "A name is letters, digits and _, not beginning with a digit.")
        if isinstance(item, dict):
            _unknown(item, ("secret_ref",), here, found)
            ref = item.get("secret_ref")
            if not isinstance(ref, str) or not re.fullmatch(_REFERENCE, ref):
                found.add(f"{here}/secret_ref", "bad_secret_ref", "Write env:NAME or file:NAME.")
            elif ref.startswith("file:") and ".." in ref[5:].split("/"):
                found.add(f"{here}/secret_ref", "path_escape", "A path has no '..' in it.")
        elif not isinstance(item, str):
            found.add(here, "wrong_type", 'A string or {"secret_ref": "env:NAME"} is expected.')
        elif len(item) > _MAX_VALUE:
            found.add(here, "too_long", f"A value has at most {_MAX_VALUE} characters.")
        else:
            reason = secret_value(item)
            if reason is None and item and secret_name(name):
                reason = "its name says so"
            if reason is not None:
                detail = f'This looks like a secret ({reason}). Write {{"secret_ref": "env:NAME"}} instead.'
                found.add(here, "looks_like_secret", detail)
