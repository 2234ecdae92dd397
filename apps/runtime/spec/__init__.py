"""Pipeline specs: text → model → diagnostics → canonical → hash → plan → diff → graph (docs/spec.md).

Plain Python, the same code in the control plane and on every host.
"""

from apps.runtime.spec.compile import Compilation, compile_spec, spec_hash_of
from apps.runtime.spec.diagnostics import CODES, Diagnostic, as_dicts
from apps.runtime.spec.diff import Change, semantic_diff
from apps.runtime.spec.graph import to_dot, to_svg
from apps.runtime.spec.plan import Barrier, Lane, Plan, PlanError, PlanStage

__all__ = [
    "CODES",
    "Barrier",
    "Change",
    "Compilation",
    "Diagnostic",
    "Lane",
    "Plan",
    "PlanError",
    "PlanStage",
    "as_dicts",
    "compile_spec",
    "semantic_diff",
    "spec_hash_of",
    "to_dot",
    "to_svg",
]
