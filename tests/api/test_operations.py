"""Every endpoint is declared: each method an operation, each route a name, each code of a problem one that exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TypedDict

from rest_framework.response import Response

from apps.api.base import ApiView
from apps.api.operations import Operation, operation, operation_of
from tests.answers import COMMON, judge
from tests.core.test_conventions import api_routes

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("get", "post", "put", "patch", "delete")


def operations() -> list[tuple[str, type[ApiView], str]]:
    """(path, view, method) of every method of every route."""
    return [
        (path, view, method)
        for path, pattern in api_routes()
        for view in [pattern.callback.cls]  # type: ignore[attr-defined]
        for method in METHODS
        if hasattr(view, method)
    ]


def test_every_method_of_every_route_is_declared_and_described() -> None:
    assert len(operations()) > 60
    for path, view, method in operations():
        declared = operation_of(view, method.upper())
        assert declared is not None, (path, method)
        assert len(inspect.getdoc(getattr(view, method)) or "") > 10, (path, method)
        assert declared.answer is not None or 204 in declared.statuses or method == "get", (path, method)


def test_every_route_has_a_name_of_its_own() -> None:
    names = [pattern.name for _, pattern in api_routes()]
    assert all(names)
    assert len(names) == len(set(names))


def test_every_declared_code_is_one_that_the_code_raises() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "apps").rglob("*.py") if "/api" not in str(path))
    raised = set(re.findall(r'"([a-z_]+)"', text))
    declared = {
        code for _, view, method in operations() for code in (operation_of(view, method.upper()) or Operation()).errors
    }
    assert declared - raised == set()
    assert declared & COMMON == {"invalid_transition"} & declared


def test_an_answer_that_is_not_as_declared_is_noticed() -> None:
    class Named(TypedDict):
        name: str

    declared = operation(answer=Named, status=201, errors=("name_taken",))(lambda view, request: None).operation  # type: ignore[attr-defined]
    assert judge(declared, Response({"name": "x"}, status=201)) == []
    assert judge(declared, Response({"name": "x"}, status=200)) == ["the status 200 is not declared"]
    assert judge(declared, Response({"nam": "x"}, status=201)) == ["/name is missing", "/nam is not declared"]
    assert judge(declared, Response(["x"], status=201)) == ["/: an object is declared"]
    assert judge(declared, Response({"code": "name_taken"}, status=409)) == []
    assert judge(declared, Response({"code": "other"}, status=409)) == ["the code other is not declared"]
