"""What a stage can do to a record: identity and the dataguard ops (docs/spec.md)."""

from apps.runtime.ops.dataguard import SettingProblem, Slot, Step, build_step, check_settings
from apps.runtime.ops.names import KINDS, Op, OpError, OpKind, parse_op, url_problem
from apps.runtime.ops.records import Refused

__all__ = [
    "KINDS",
    "Op",
    "OpError",
    "OpKind",
    "Refused",
    "SettingProblem",
    "Slot",
    "Step",
    "build_step",
    "check_settings",
    "parse_op",
    "url_problem",
]
