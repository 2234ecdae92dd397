"""The published JSON Schema of a config, and the limits it shares with the checks."""

from __future__ import annotations

from collections.abc import Mapping

from apps.runtime.ops import all_settings

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1
MAX_PROBLEMS = 200
PROFILES = ("default", "low-latency", "isolated-core")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

TUNING_NUMBERS = {"batch_size": 65_536, "buffer_records": 1_048_576}
MAX_PATH = 1024
MAX_VALUE = 4096
MAX_VARIABLES = 256
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
REFERENCE = r"(env:[A-Za-z_][A-Za-z0-9_]{0,127}|file:[^\x00-\x1f\x7f]{1,1024})"
NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
HTTP_PATH = r"/[A-Za-z0-9._~/-]{0,255}"

_FILE_PATH = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_PATH,
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


_INGRESS = (
    _closed(
        {
            "type": {"const": "file"},
            "path": _FILE_PATH,
            "follow": {"type": "boolean", "description": "Wait for more at the end (true)."},
        },
        "type",
        "path",
    ),
    _closed(
        {
            "type": {"const": "http"},
            "host": {"enum": list(LOOPBACK)},
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "path": {"type": "string", "pattern": f"^{HTTP_PATH}$"},
        },
        "type",
        "port",
    ),
)
_EGRESS = (
    _closed({"type": {"const": "file"}, "path": _FILE_PATH}, "type", "path"),
    _closed(
        {"type": {"const": "http"}, "url": {"type": "string", "pattern": "^https?://", "maxLength": 2048}},
        "type",
        "url",
    ),
)


def _side(*adapters: Mapping[str, object]) -> dict[str, object]:
    """One adapter, or one for each lane that is named."""
    lanes = {
        "type": "object",
        "propertyNames": {"pattern": f"^{NAME}$"},
        "additionalProperties": {"oneOf": list(adapters)},
        "description": "Lane to adapter, for a graph; one adapter alone is for the only lane there is.",
    }
    return {"oneOf": [*adapters, _closed({"lanes": lanes}, "lanes")]}


def config_schema() -> dict[str, object]:
    """JSON Schema 2020-12 of a config, with the settings of all ops. Every top key is optional; what is not named is refused."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ByteOr Cloud runtime configuration, version 1",
        **_closed(
            {
                "tuning": _closed(
                    {
                        "profile": {"enum": list(PROFILES)},
                        **{
                            name: {"type": "integer", "minimum": 1, "maximum": most}
                            for name, most in TUNING_NUMBERS.items()
                        },
                    },
                    description="Wishes: an agent reports what it could apply.",
                ),
                "adapters": _closed(
                    {"ingress": _side(*_INGRESS), "egress": _side(*_EGRESS)},
                    description="Without adapters the pipeline activates and idles.",
                ),
                "stages": {
                    "type": "object",
                    "propertyNames": {"pattern": f"^{NAME}$"},
                    "additionalProperties": _closed(
                        {name: dict(setting.shape) for name, setting in all_settings().items()}
                    ),
                },
                "environment": {
                    "type": "object",
                    "maxProperties": MAX_VARIABLES,
                    "propertyNames": {"pattern": f"^{VARIABLE}$"},
                    "additionalProperties": {
                        "oneOf": [
                            {"type": "string", "maxLength": MAX_VALUE},
                            _closed({"secret_ref": {"type": "string", "pattern": f"^{REFERENCE}$"}}, "secret_ref"),
                        ]
                    },
                    "description": "What looks like a secret is refused; a secret_ref is resolved on the host.",
                },
            }
        ),
    }


CONFIG_SCHEMA = config_schema()
