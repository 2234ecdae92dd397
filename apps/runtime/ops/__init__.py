"""What a stage can do to a record: identity, the dataguard ops, and effects by a port (docs/spec.md)."""

from apps.runtime.ops.effects import EffectFailed, EffectRefused, Effects
from apps.runtime.ops.exec import command_of
from apps.runtime.ops.keys import bucket_of
from apps.runtime.ops.kind import Argument, Example, Need, OpKind, Setting, SettingProblem, StageInput, Step
from apps.runtime.ops.records import Refused
from apps.runtime.ops.registry import KINDS, Op, OpError, all_settings, build_step, needs_of, parse_op, setting_problems
from apps.runtime.ops.rules import RuleSet
from apps.runtime.ops.slot import Slot
from apps.runtime.ops.urls import url_problem

__all__ = [
    "KINDS",
    "Argument",
    "EffectFailed",
    "EffectRefused",
    "Effects",
    "Example",
    "Need",
    "Op",
    "OpError",
    "OpKind",
    "Refused",
    "RuleSet",
    "Setting",
    "SettingProblem",
    "Slot",
    "StageInput",
    "Step",
    "all_settings",
    "bucket_of",
    "build_step",
    "command_of",
    "needs_of",
    "parse_op",
    "setting_problems",
    "url_problem",
]
