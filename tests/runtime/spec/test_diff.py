"""A reviewer reads what a spec changes in meaning."""

from __future__ import annotations

from apps.runtime.spec import compile_spec, semantic_diff
from tests.runtime.specs import ONE, compiled

BASE = compiled(("check", "dataguard_check", []), ("redact", "dataguard_redact", [0]))


def _told(*args: object) -> list[tuple[str, str, str | None, str | None]]:
    return [(c.kind, c.subject, c.before, c.after) for c in semantic_diff(*args)]  # type: ignore[arg-type]


def test_a_first_version_has_every_stage_new() -> None:
    assert _told(None, BASE) == [
        ("stage_added", "check", None, "dataguard_check"),
        ("stage_added", "redact", None, "dataguard_redact"),
    ]
    assert _told(compile_spec("nonsense"), BASE) == _told(None, BASE)


def test_the_same_meaning_is_no_change() -> None:
    assert semantic_diff(BASE, compile_spec("# other text\r\n" + (BASE.canonical or ""))) == ()


def test_a_spec_with_errors_can_not_be_compared() -> None:
    (change,) = semantic_diff(BASE, compile_spec("pipeline.name=orders"))
    assert change.kind == "not_comparable"


def test_each_kind_of_change_is_named() -> None:
    new = compiled(
        ("redact", "dataguard_fused", []), ("tap", "identity", [0]), ("check", "dataguard_check", [0]), name="sales"
    )
    assert _told(BASE, new) == [
        ("name_changed", "pipeline.name", "orders", "sales"),
        ("stage_moved", "redact", "2", "1"),
        ("op_changed", "redact", "dataguard_redact", "dataguard_fused"),
        ("depends_on_changed", "redact", "check", ""),
        ("stage_added", "tap", None, "identity"),
        ("depends_on_changed", "check", "", "redact"),
    ]
    assert ("stage_removed", "tap", "identity", None) in _told(new, BASE)


def test_a_stage_that_only_got_another_number_did_not_move() -> None:
    new = compiled(("tap", "identity", []), ("check", "dataguard_check", [0]), ("redact", "dataguard_redact", [1]))
    assert _told(BASE, new) == [
        ("stage_added", "tap", None, "identity"),
        ("depends_on_changed", "check", "", "tap"),
    ]


def test_every_change_is_a_sentence() -> None:
    for change in semantic_diff(BASE, compile_spec(ONE)):
        assert change.text.endswith(".")
        assert change.as_dict()["text"] == change.text
