"""The ops by name, and what a spec, a config and a host ask about one: parse it, check its settings, build its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apps.runtime.ops.dataguard_check import DATAGUARD_CHECK
from apps.runtime.ops.dataguard_fused import DATAGUARD_FUSED
from apps.runtime.ops.dataguard_redact import DATAGUARD_REDACT
from apps.runtime.ops.effects import NO_EFFECTS, Effects
from apps.runtime.ops.exec import EXEC
from apps.runtime.ops.http_post import HTTP_POST
from apps.runtime.ops.identity import IDENTITY
from apps.runtime.ops.kind import Need, OpKind, Setting, SettingProblem, Settings, StageInput, Step
from apps.runtime.ops.schema import pointer_of

KINDS: dict[str, OpKind] = {
    kind.name: kind
    for kind in (
        IDENTITY,
        DATAGUARD_CHECK,
        DATAGUARD_REDACT,
        DATAGUARD_FUSED,
        HTTP_POST,
        EXEC,
    )
}


@dataclass(frozen=True, slots=True)
class Op:
    """An op as a stage names it: `text` is `name` or `name:argument`."""

    name: str
    argument: str | None = None

    @property
    def kind(self) -> OpKind:
        return KINDS[self.name]

    @property
    def capability(self) -> str | None:
        return self.kind.capability

    @property
    def text(self) -> str:
        return self.name if self.argument is None else f"{self.name}:{self.argument}"


class OpError(ValueError):
    """The op's text is not understood: `code` is `unknown_op` or `bad_op_argument`."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def parse_op(text: str) -> Op:
    """The op that `text` names. Raises OpError."""
    name, colon, argument = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise OpError("unknown_op", f"There is no op '{name[:40]}'.", "Use one of " + ", ".join(KINDS) + ".")
    if kind.argument is None:
        if colon:
            raise OpError("bad_op_argument", f"{name} takes no argument.", f"Write {name}; settings are in the config.")
        return Op(name)
    if not argument:
        raise OpError("bad_op_argument", f"{name} needs an argument.", f"Write {kind.form}.")
    problem = kind.argument.problem(argument)
    if problem is not None:
        raise OpError("bad_op_argument", problem, kind.argument.hint)
    return Op(name, argument)


def all_settings() -> dict[str, Setting[object]]:
    """Every setting that some op takes, by name, in alphabetical order."""
    found = {setting.name: setting for kind in KINDS.values() for setting in kind.settings}
    return dict(sorted(found.items()))


def setting_problems(op_name: str, settings: object) -> tuple[SettingProblem, ...]:
    """Every problem with the settings of a stage with this op, in a config that is being written. Never raises."""
    return _read(op_name, settings, strict=True)[1]


def needs_of(op_name: str, settings: object) -> list[Need]:
    """What a stage with this op and good settings needs of an agent: the op, then what is in its settings."""
    kind = KINDS[op_name]
    given = settings if isinstance(settings, Mapping) else {}
    inside = [need for setting in kind.settings if setting.name in given for need in setting.needs(given[setting.name])]
    return [Need(f"the op {kind.name}", kind.since), *inside]


def build_step(
    op: Op, settings: Mapping[str, object], effects: Effects | None
) -> tuple[Step | None, tuple[SettingProblem, ...]]:
    """The op with its settings, ready to run, or every problem with them.

    An op that acts on the outside world goes through `effects`; without any it is the problem `effects_missing`. An op without a
    capability gets none.
    """
    values, problems = _read(op.name, settings, strict=False)
    kind = KINDS.get(op.name)
    if kind is None:
        return None, problems
    if kind.capability is not None and effects is None:
        message = f"The op {op.name} acts on the outside world, which nothing here does for it."
        problems = (*problems, SettingProblem("", "effects_missing", message))
    if problems:
        return None, problems
    port = effects if effects is not None and kind.capability is not None else NO_EFFECTS
    return kind.build(StageInput(Settings(values), op.argument or "", port)), ()


def _read(op_name: str, settings: object, *, strict: bool) -> tuple[dict[str, object], tuple[SettingProblem, ...]]:
    """What the settings are, by name, and every problem with them."""
    kind = KINDS.get(op_name)
    if kind is None:
        return {}, (SettingProblem("", "unknown_op", f"There is no op {op_name[:40]}."),)
    if not isinstance(settings, Mapping):
        return {}, (SettingProblem("", "wrong_type", "The settings of a stage are an object."),)
    known = all_settings()
    taken = {setting.name for setting in kind.settings}
    values: dict[str, object] = {}
    problems: list[SettingProblem] = []
    for key in settings:
        if key not in known:
            message = "A stage takes " + " and ".join(known) + "."
            problems.append(SettingProblem(pointer_of("", key), "unknown_key", message))
    for name in known:
        if name in taken and name not in settings:
            problems.append(SettingProblem("", f"{name}_missing", f"The op {kind.name} needs {name}."))
        elif name not in taken and name in settings:
            problems.append(SettingProblem(f"/{name}", f"{name}_not_taken", f"The op {kind.name} takes no {name}."))
    for name, setting in known.items():
        if name in settings:
            values[name], wrong = setting.read(settings[name], strict)
            problems += [SettingProblem(f"/{name}{p.pointer}", p.code, p.message) for p in wrong]
    return values, tuple(problems)
