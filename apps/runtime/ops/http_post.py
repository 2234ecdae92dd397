"""`http_post:<url>`: forwards, and POSTs the same bytes to the URL."""

from __future__ import annotations

from apps.runtime.ops.kind import Argument, Example, OpKind, StageInput, Step
from apps.runtime.ops.urls import url_problem


def _build(stage: StageInput) -> Step:
    url, post = stage.argument, stage.effects.http_post
    return Step(lambda slot: post(url, slot.data()))


HTTP_POST = OpKind(
    name="http_post",
    does="forwards, and POSTs the same bytes to the URL: http or https, no user name in it, at most 2,048 characters",
    since="0.2.0",
    build=_build,
    argument=Argument(
        form="<url>",
        hint="Write http_post:https://host/path.",
        pattern=r"https?://[!-~]{1,2048}",
        problem=url_problem,
    ),
    capability="action:http_post",
    examples=(Example(record=b"any bytes", result=b"any bytes", argument="https://hooks.example.com/orders"),),
)
