"""What is wrong with a config, gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from apps.runtime.config.shape import MAX_PROBLEMS
from apps.runtime.ops.schema import pointer_of


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """What is wrong at `pointer` (RFC 6901). `detail` never repeats a value that looks like a secret."""

    pointer: str
    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        """`{pointer, code, detail}`."""
        return asdict(self)


class Found:
    def __init__(self) -> None:
        self._problems: list[ConfigProblem] = []

    @property
    def any(self) -> bool:
        return bool(self._problems)

    def add(self, pointer: str, code: str, detail: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(ConfigProblem(pointer, code, detail))

    def all(self) -> tuple[ConfigProblem, ...]:
        return tuple(self._problems)


def refuse_unknown(value: Mapping[str, object], known: tuple[str, ...], at: str, found: Found) -> None:
    """Report each key of `value` that is not among `known`."""
    for key in value:
        if key not in known:
            found.add(pointer_of(at, key), "unknown_key", "Known here: " + ", ".join(known) + ".")


def object_at(value: object, at: str, found: Found) -> Mapping[str, object] | None:
    """`value` if it is an object; else None, which is reported."""
    if isinstance(value, dict):
        return value
    found.add(at, "wrong_type", "An object is expected.")
    return None


def check_whole(value: object, least: int, most: int, at: str, found: Found) -> None:
    """Report `value` unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        found.add(at, "bad_value", f"A whole number from {least} to {most} is expected.")
