"""An op that no registry has: what a newer version might bring."""

from __future__ import annotations

from apps.runtime.ops import Example, OpKind, Setting, SettingProblem, StageInput, Step
from apps.runtime.ops.records import Value


def _read_names(value: object, strict: bool) -> tuple[list[str], list[SettingProblem]]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value, []
    return [], [SettingProblem("", "wrong_type", "keep is a list of strings.")]


KEEP = Setting("keep", {"type": "array", "items": {"type": "string"}}, _read_names)


def _build(stage: StageInput) -> Step:
    names = set(stage.settings[KEEP])

    def edit(record: dict[str, Value]) -> None:
        for key in [key for key in record if key not in names]:
            del record[key]

    return Step(lambda slot: slot.rewrite(edit))


SCRATCH = OpKind(
    name="scratch_keep",
    does="keeps the fields that are named",
    since="9.0.0",
    build=_build,
    settings=(KEEP,),
    examples=(
        Example(record=b'{"a": 1.0, "id": 2}', result=b'{"id":2}', settings={"keep": ["id", "by"]}),
        Example(record=b"[]", result=None, settings={"keep": ["id"]}),
    ),
)
