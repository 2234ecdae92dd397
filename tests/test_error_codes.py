"""Each stable code of an error, a refusal or a diagnostic is named by a test: no "no" of the product goes untried.

The codes are read from the source of `apps`: each value of a parameter, a field or a variable called `code`, and the
keys of tables called `CODES`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(folder: str) -> dict[Path, ast.Module]:
    found = (path for path in (ROOT / folder).rglob("*.py") if "migrations" not in path.parts)
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in found}


@dataclass
class Reader:
    """What takes a code, by name: at which positions of a call. And constants, by name: their values."""

    modules: dict[Path, ast.Module]
    positions: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    constants: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for module in self.modules.values():
            for node in ast.walk(module):
                if isinstance(node, Function):
                    self._add_function(node.name, node)
                elif isinstance(node, ast.ClassDef):
                    self._add_class(node)
            for statement in module.body:
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
                    for target in statement.targets:
                        self.constants[ast.unparse(target)].add(str(statement.value.value))

    def _add_function(self, name: str, function: Function) -> None:
        names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
        names = [argument for argument in names if argument not in ("self", "cls")]
        if "code" in names:
            self.positions[name].add(names.index("code"))

    def _add_class(self, node: ast.ClassDef) -> None:
        fields = [ast.unparse(each.target) for each in node.body if isinstance(each, ast.AnnAssign)]
        is_record = node.decorator_list or "NamedTuple" in map(ast.unparse, node.bases)
        if is_record and "code" in fields:
            self.positions[node.name].add(fields.index("code"))
        for each in node.body:
            if isinstance(each, Function) and each.name == "__init__":
                self._add_function(node.name, each)

    def literals(self, value: ast.expr | None) -> set[str]:
        """The texts that an expression may stand for, as far as the source shows it."""
        match value:
            case ast.Constant(value=str(text)):
                return {text}
            case ast.Name(id=name):
                return self.constants.get(name, set())
            case ast.IfExp(body=one, orelse=other):
                return self.literals(one) | self.literals(other)
        return set()

    def codes(self) -> dict[str, str]:
        """Code → the first place where it stands."""
        found: dict[str, str] = {}
        for path, module in sorted(self.modules.items()):
            for node in ast.walk(module):
                for value in self._values(node):
                    for text in self.literals(value):
                        if CODE.fullmatch(text):
                            found.setdefault(text, f"{path}:{getattr(value, 'lineno', 0)}")
        return found

    def _values(self, node: ast.AST) -> Iterator[ast.expr | None]:
        match node:
            case ast.Call():
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
                yield from (node.args[at] for at in self.positions.get(name, ()) if at < len(node.args))
                yield from (keyword.value for keyword in node.keywords if keyword.arg == "code")
            case ast.Assign(targets=[ast.Name(id="code")]) | ast.AnnAssign(target=ast.Name(id="code")):
                yield node.value
            case (
                ast.Assign(targets=[ast.Name(id="CODES")], value=table)
                | ast.AnnAssign(target=ast.Name(id="CODES"), value=table)
            ):
                yield from (key for each in ast.walk(table) if isinstance(each, ast.Dict) for key in each.keys)
            case ast.arguments():
                defaults = [*node.defaults, *(each for each in node.kw_defaults)]
                named = [*node.args[len(node.args) - len(node.defaults) :], *node.kwonlyargs]
                yield from (value for each, value in zip(named, defaults, strict=True) if each.arg == "code")
            case ast.For(target=ast.Tuple(elts=names), iter=ast.Tuple(elts=rows) | ast.List(elts=rows)):
                at = [ast.unparse(each) for each in names]
                if "code" in at:
                    yield from (row.elts[at.index("code")] for row in rows if isinstance(row, ast.Tuple))


def test_the_reader_finds_each_way_to_name_a_code() -> None:
    source = """
LOST = "lost_one"
CODES = {"in_a_table": 1}
class Broken(Exception):
    code: str = "by_default"
    def __init__(self, detail, code="as_parameter"): ...
def refuse(value, code, /): ...
def fail(*, code="keyword_default"): ...
raise Broken("text", code=LOST)
raise Broken("text", "in_its_place" if value else "or_another")
refuse("no_code_here", "as_argument")
code = "as_variable"
for given, code in ((1, "in_a_loop"), (2, "too")): ...
"""
    found = Reader({Path("x.py"): ast.parse(source)}).codes()
    assert set(found) == {
        "lost_one", "in_a_table", "by_default", "as_parameter", "keyword_default", "in_its_place", "or_another", "as_argument",
        "as_variable", "in_a_loop", "too",
    }  # fmt: skip


def test_every_code_of_an_error_is_named_by_a_test() -> None:
    codes = Reader(sources("apps")).codes()
    assert len(codes) > 200, "the reader has lost its eyes"
    here = Path(__file__)
    words = {
        word
        for path in (ROOT / "tests").rglob("*.py")
        if path != here
        for word in re.findall(r"[a-z][a-z0-9_]*", path.read_text())
    }
    untested = sorted(f"{code} ({place})" for code, place in codes.items() if code not in words)
    assert not untested, (
        "No test names these codes. Provoke each and assert its code, or remove what can never be raised:\n  "
        + "\n  ".join(untested)
    )
