"""The mutants of a module: mutmut's mutations of its functions, and three kinds of our own.

mutmut's own runner does not fit: it leaves out decorated functions, makes the test database anew for each mutant, selects
tests by function, and counts a time-out as killed. So only its mutations are used here.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import get_ignored_lines

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """One change of one module. `path`, `function` and `change` identify it as long as the function is not edited."""

    path: str
    function: str
    change: str
    line: int
    lines: frozenset[int]
    """A test that executes none of these lines can't notice the change."""
    first_line: int
    """Of the function, its decorators included."""
    kind: str
    module: cst.Module
    before: cst.CSTNode
    after: cst.CSTNode

    @property
    def key(self) -> tuple[str, str, str]:
        return self.path, self.function, self.change

    def source(self) -> str:
        """The changed module, without the decorators of its functions."""
        return str(self.module.deep_replace(self.before, self.after).code)  # type: ignore[union-attr]


def _condition_never_holds(node: cst.If) -> Iterator[cst.If]:
    yield node.with_changes(test=cst.Name("False"), whitespace_before_test=cst.SimpleWhitespace(" "))


def _call_left_out(node: cst.Expr) -> Iterator[cst.Pass]:
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


def _filter_left_out(node: cst.CompFor) -> Iterator[cst.CompFor]:
    for i in range(len(node.ifs)):
        yield node.with_changes(ifs=[*node.ifs[:i], *node.ifs[i + 1 :]])


OPERATORS = [
    *mutation_operators,
    (cst.If, _condition_never_holds),
    (cst.Expr, _call_left_out),
    (cst.CompFor, _filter_left_out),
]


def _is_prose(node: cst.BaseExpression) -> bool:
    """True for text that is written for people: its exact words are no behaviour."""
    if isinstance(node, cst.FormattedString):
        return any(isinstance(part, cst.FormattedStringText) and " " in part.value for part in node.parts)
    if isinstance(node, cst.ConcatenatedString):
        return _is_prose(node.left) or _is_prose(node.right)
    return isinstance(node, cst.SimpleString) and " " in node.value


class _InsideProse(cst.CSTVisitor):
    """Collects the nodes inside text for people: which facts it names, and how, is no behaviour either."""

    def __init__(self) -> None:
        self.nodes: set[cst.CSTNode] = set()
        self._depth = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if self._depth:
            self.nodes.add(node)
        self._depth += isinstance(node, cst.FormattedString) and _is_prose(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._depth -= isinstance(original_node, cst.FormattedString) and _is_prose(original_node)


def _is_wanted(original: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """False for changes of prose, and for a second and third way to change the same string."""
    if isinstance(original, cst.SimpleString) and isinstance(mutated, cst.SimpleString):
        return not _is_prose(original) and "XX" in mutated.value
    if isinstance(original, cst.Call) and isinstance(mutated, cst.Call):
        kept = {id(arg) for arg in mutated.args}
        return not any(_is_prose(arg.value) for arg in original.args if id(arg) not in kept)
    return True


def _kind(original: cst.CSTNode) -> str:
    if isinstance(original, cst.Call):
        return "argument"
    if isinstance(original, cst.BaseNumber | cst.BaseString | cst.Name | cst.Assign | cst.AnnAssign | cst.AugAssign):
        return "value"
    return "rule"


def _without_decorators(text: str, tree: ast.Module) -> str:
    """`text` with the decorators of functions as blank lines: mutmut leaves decorated functions out."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                for n in range(decorator.lineno - 1, decorator.end_lineno or decorator.lineno):
                    lines[n] = "\n"
    return "".join(lines)


class _Function(NamedTuple):
    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef

    @property
    def first_line(self) -> int:
        return min([self.node.lineno, *(d.lineno for d in self.node.decorator_list)])


def _functions(body: Iterable[ast.stmt], prefix: str = "") -> Iterator[_Function]:
    """Functions and methods, not those inside other functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _Function(prefix + node.name, node)
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


def _statement_lines(function: _Function, line: int) -> frozenset[int]:
    """The lines of the innermost statement around `line`; of a compound one those of its head."""
    inside = [
        node
        for node in ast.walk(function.node)
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    innermost = max(inside, key=lambda node: (node.lineno, -(node.end_lineno or 0)))
    body = getattr(innermost, "body", None) or getattr(innermost, "cases", None)
    last = innermost.end_lineno or innermost.lineno
    if body:
        first = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
        last = max(innermost.lineno, min(last, first.lineno - 1))
    return frozenset(range(innermost.lineno, last + 1))


def _shown(module: cst.Module, node: cst.CSTNode, most: int = 100) -> str:
    if isinstance(node, cst.If):
        return f"if {_shown(module, node.test)}"
    text = re.sub(r"\s+", " ", module.code_for_node(node)).strip()
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def _description(module: cst.Module, before: cst.CSTNode, after: cst.CSTNode) -> str:
    """The change in one line; of a call only the argument that changed."""
    if isinstance(before, cst.Call) and isinstance(after, cst.Call) and before.func is after.func:
        kept = {id(arg) for arg in after.args}
        changed = [
            _shown(module, arg.with_changes(comma=cst.MaybeSentinel.DEFAULT))
            for arg in before.args
            if id(arg) not in kept
        ]
        outcome = "None" if len(after.args) == len(before.args) else "left out"
        return f"{_shown(module, before.func, 60)}({', '.join(changed)} → {outcome})"
    if isinstance(after, cst.Pass):
        return f"{_shown(module, before)} → left out"
    return f"{_shown(module, before)} → {_shown(module, after)}"


def make_mutants(path: str) -> list[Mutant]:
    """All mutants of the module at `path` (relative to the repository), in the order in which a sample takes them.

    A sample is a beginning of this list. The order depends on the changes alone, and takes the three kinds in turn: rules
    (conditions, comparisons, calls left out), values, and arguments, which are the most and the easiest to notice.
    """
    original = (ROOT / path).read_text()
    tree = ast.parse(original)
    text = _without_decorators(original, tree)
    functions = list(_functions(tree.body))
    wrapper = MetadataWrapper(cst.parse_module(text))
    visitor = MutationVisitor(OPERATORS, get_ignored_lines(path, text, wrapper))
    module = wrapper.visit(visitor)
    prose = _InsideProse()
    module.visit(prose)
    positions = wrapper.resolve(PositionProvider)
    seen: Counter[tuple[str, str]] = Counter()
    found: dict[str, list[tuple[str, Mutant]]] = defaultdict(list)
    for mutation in visitor.mutations:
        before, after = mutation.original_node, mutation.mutated_node
        position = positions.get(before)
        if mutation.contained_by_top_level_function is None or position is None or before in prose.nodes:
            continue
        if not _is_wanted(before, after):
            continue
        line = position.start.line
        around = [f for f in functions if f.node.lineno <= line <= (f.node.end_lineno or 0)]
        if not around or line < around[-1].node.body[0].lineno:
            continue
        function = around[-1]
        change = _description(module, before, after)
        seen[function.name, change] += 1
        if seen[function.name, change] > 1:
            change += f" (no. {seen[function.name, change]})"
        mutant = Mutant(
            path=path,
            function=function.name,
            change=change,
            line=line,
            lines=_statement_lines(function, line),
            first_line=function.first_line,
            kind=_kind(before),
            module=module,
            before=before,
            after=after,
        )
        place = hashlib.sha256(f"{path} {function.name} {change}".encode()).hexdigest()
        found[mutant.kind].append((place, mutant))
    kinds = [
        [mutant for _, mutant in sorted(found[kind], key=lambda x: x[0])] for kind in ("rule", "value", "argument")
    ]
    return [mutant for turn in itertools.zip_longest(*kinds) for mutant in turn if mutant is not None]
