"""`spec validate|canonical|hash|plan|dot|diff FILE…`: the compiler as a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from apps.runtime.spec.compile import Compilation, compile_spec
from apps.runtime.spec.diff import semantic_diff
from apps.runtime.spec.graph import to_dot
from apps.runtime.spec.text import MAX_BYTES

USAGE = """usage: spec validate|canonical|hash|plan|dot FILE...
       spec diff OLD NEW

validate   say what is wrong, a line each: path:line: code: message
canonical  print the canonical text
hash       print the spec hash
plan       print the execution plan as JSON
dot        print the graph for Graphviz
diff       say what the second spec changes against the first

A FILE of - is standard input. Exit status: 0 fine, 1 a spec has errors or can't be read, 2 wrong usage.
"""


def _plan(done: Compilation) -> str:
    plan = done.plan.as_dict() if done.plan is not None else None
    return json.dumps(plan, indent=2) + "\n"


_PRINTS: dict[str, Callable[[Compilation], str]] = {
    "validate": lambda done: "",
    "canonical": lambda done: done.canonical or "",
    "hash": lambda done: f"{done.spec_hash}\n",
    "plan": _plan,
    "dot": lambda done: to_dot(done.plan) if done.plan is not None else "",
}


def main(argv: Sequence[str]) -> int:
    """Run the command and answer its exit status. `argv` is without the program's name."""
    arguments = list(argv)
    if arguments in (["-h"], ["--help"], ["help"]):
        sys.stdout.write(USAGE)
        return 0
    if not arguments or arguments[0] not in (*_PRINTS, "diff"):
        return _usage("name one of validate, canonical, hash, plan, dot, diff")
    command, files = arguments[0], arguments[1:]
    if not files:
        return _usage(f"{command} needs a FILE")
    if any(name.startswith("-") and name != "-" for name in files):
        return _usage(f"{command} takes no options")
    if files.count("-") > 1:
        return _usage("standard input can be read once only")
    if command == "diff":
        return _diff(files) if len(files) == 2 else _usage("diff takes two FILEs")
    output = sys.stdout if command == "validate" else sys.stderr
    status = 0
    for name in files:
        done = _compiled(name)
        if done is not None:
            output.writelines(_lines(name, done))
        if done is None or not done.ok:
            status = 1
            continue
        text = _PRINTS[command](done)
        if command == "hash" and len(files) > 1:
            text = text.rstrip("\n") + f"  {name}\n"
        sys.stdout.write(text)
    return status


def _diff(files: Sequence[str]) -> int:
    done = [(name, _compiled(name)) for name in files]
    for name, item in done:
        if item is not None:
            sys.stderr.writelines(_lines(name, item))
    old, new = done[0][1], done[1][1]
    if old is None or new is None or not old.ok or not new.ok:
        return 1
    sys.stdout.writelines(f"{change.kind}: {change.text}\n" for change in semantic_diff(old, new))
    return 0


def _compiled(name: str) -> Compilation | None:
    try:
        if name == "-":
            return compile_spec(sys.stdin.buffer.read(MAX_BYTES + 1))
        with open(name, "rb") as file:
            return compile_spec(file.read(MAX_BYTES + 1))
    except OSError as error:
        sys.stderr.write(f"{name}:0: unreadable: {error.strerror or 'The file can not be read'}.\n")
        return None


def _lines(name: str, done: Compilation) -> list[str]:
    return [
        f"{name}:{item.line}: {item.code}: {item.message}" + (f" {item.hint}\n" if item.hint else "\n")
        for item in done.diagnostics
    ]


def _usage(problem: str) -> int:
    sys.stderr.write(f"spec: {problem}\n{USAGE}")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
