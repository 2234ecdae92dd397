"""What a stage can do to a record: identity, the dataguard ops, and effects by a port (docs/spec.md)."""

from apps.runtime.ops.effects import EffectFailed, EffectRefused, Effects
from apps.runtime.ops.keys import bucket_of
from apps.runtime.ops.names import KINDS, Op, OpError, OpKind, command_of, parse_op, url_problem
from apps.runtime.ops.records import Refused
from apps.runtime.ops.steps import SettingProblem, Slot, Step, build_step, check_settings

__all__ = [
    "KINDS",
    "EffectFailed",
    "EffectRefused",
    "Effects",
    "Op",
    "OpError",
    "OpKind",
    "Refused",
    "SettingProblem",
    "Slot",
    "Step",
    "bucket_of",
    "build_step",
    "check_settings",
    "command_of",
    "parse_op",
    "url_problem",
]
