"""`exec:<program>|<arg>|...`: forwards, and writes the same bytes to the program's standard input."""

from __future__ import annotations

from apps.runtime.ops.kind import Argument, Example, OpKind, StageInput, Step


def command_of(argument: str) -> tuple[str, ...]:
    """The program and its arguments that the argument of an `exec` op names."""
    return tuple(argument.split("|"))


def _problem(argument: str) -> str | None:
    program = command_of(argument)[0]
    return None if program.strip() and program == program.strip() else "exec names no program."


def _build(stage: StageInput) -> Step:
    argv, run = command_of(stage.argument), stage.effects.exec
    return Step(lambda slot: run(argv, slot.data()))


EXEC = OpKind(
    name="exec",
    does="forwards, and writes the same bytes to the program's standard input; no shell",
    since="0.2.0",
    build=_build,
    argument=Argument(
        form="<program>|<arg>|...",
        hint="Write exec:/usr/bin/program|first argument|second argument.",
        pattern=r"[!-~][ -~]*",
        problem=_problem,
    ),
    capability="action:exec",
    examples=(Example(record=b"any bytes", result=b"any bytes", argument="/usr/bin/logger|--tag|orders"),),
)
