"""What an op is made of: its settings, its argument, the step it becomes, and its text in the reference.

An op is one module with one `OpKind`, and one row in `registry.KINDS`. The spec compiler, the check of configs, their published
schema, the interpreter, the reference (`docs/spec.md`), the random graphs of the tests and the bench all read that registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from apps.runtime.ops.effects import NO_EFFECTS, Effects
from apps.runtime.ops.rules import RuleSet
from apps.runtime.ops.slot import Slot

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SettingProblem:
    """What is wrong with a stage's settings; `pointer` is relative to them."""

    pointer: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a pipeline uses (`the op exec`, in words), and the first version of the agent that knows it."""

    what: str
    since: str


def _no_needs(value: object) -> Iterable[Need]:
    return ()


@dataclass(frozen=True)
class Setting(Generic[T_co]):
    """One key of a stage's settings; an op that takes it needs it.

    `shape` is what JSON Schema can express of its value. `read(value, strict)` gives the value as the op uses it (anything where there
    are problems) and every problem, pointers relative to the value; it never raises. It is strict for a config that is being
    written; a host reads what was approved once. `needs(value)` is what in a good value not every agent knows.
    """

    name: str
    shape: Mapping[str, object]
    read: Callable[[object, bool], tuple[T_co, Iterable[SettingProblem]]]
    needs: Callable[[object], Iterable[Need]] = _no_needs


class Settings:
    """The settings of one stage as they were read: `settings[RULES]` is the value of that setting."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, setting: Setting[T]) -> T:
        value: T = self._values[setting.name]
        return value


@dataclass(frozen=True, slots=True)
class Argument:
    """What follows the colon behind an op's name.

    `problem` returns why a text is none, or None; `pattern` is a regular expression that every good one matches in full.
    """

    form: str
    hint: str
    pattern: str
    problem: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class StageInput:
    """What a stage gives its op: settings that were read without a problem, an argument that is well-formed ("" for an op without
    one), and the port for effects, which reaches the outside world only for an op that names a capability."""

    settings: Settings
    argument: str = ""
    effects: Effects = NO_EFFECTS


@dataclass(frozen=True, slots=True)
class Step:
    """An op with its settings: `run` does it to a slot, or raises Refused or EffectFailed. `rules` are those that it applies."""

    run: Callable[[Slot], None]
    rules: RuleSet | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A use of the op: with this argument and these settings `record` leaves the stage as `result`; None: it is refused."""

    record: bytes
    result: bytes | None
    settings: Mapping[str, object] = field(default_factory=dict)
    argument: str | None = None


@dataclass(frozen=True, slots=True)
class OpKind:
    """All that there is to know about an op.

    `does` is the sentence of the reference (Markdown, for a table cell). `since` is the first version of the agent that knows the
    op. `capability` is what an approval must grant; None for an op that only looks at or changes the record. The first of
    `examples` is one that passes.
    """

    name: str
    does: str
    since: str
    build: Callable[[StageInput], Step]
    examples: tuple[Example, ...]
    settings: tuple[Setting[object], ...] = ()
    argument: Argument | None = None
    capability: str | None = None

    @property
    def form(self) -> str:
        """How a spec names it: `name` or `name:<argument>`."""
        return self.name if self.argument is None else f"{self.name}:{self.argument.form}"
