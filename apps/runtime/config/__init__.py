"""The runtime configuration of a bundle: its published schema, every problem at once, and its hash.

`CONFIG_SCHEMA` describes the shape to tools. `check_config` is what decides: the same shape, and what a schema
can't express (do the stages and lanes fit the plan, does a value look like a secret, can the file path leave its
directory).
"""

from apps.runtime.config.adapters import adapters_of
from apps.runtime.config.check import canonical_config, check_config, config_hash
from apps.runtime.config.findings import ConfigProblem
from apps.runtime.config.shape import CONFIG_SCHEMA, config_schema

__all__ = [
    "CONFIG_SCHEMA",
    "ConfigProblem",
    "adapters_of",
    "canonical_config",
    "check_config",
    "config_hash",
    "config_schema",
]
