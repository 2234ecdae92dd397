"""`make bench`: ratios against a floor measured in the same run. Nothing here is a test.

Floors: compiling a spec against `json.loads` and a jsonschema check of the same content; the interpreter against the same
redaction written as a bare loop over `json.loads`/`json.dumps`. Median of repeated rounds, taken in turn.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import jsonschema

from apps.runtime.interpreter import Interpreter
from apps.runtime.spec import compile_spec

SPEC = (
    "spec.version=1\npipeline.name=p\npipeline.target=SingleRing\n"
    "single_ring.stages.0.id=redact\nsingle_ring.stages.0.op=dataguard_redact\n"
)
RECORD = json.dumps({"id": 1, "total": 12.5, "customer": {"email": "ann@example.com", "card": "4111"}}).encode()


def _round(work: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def ratio(name: str, ours: Callable[[], object], floor: Callable[[], object], times: int, rounds: int = 9) -> None:
    """Print ours / floor, paired round by round."""
    ours(), floor()
    pairs = [(_round(ours, times), _round(floor, times)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    micro = statistics.median(a for a, _ in pairs) * 1e6
    print(
        f"{name:42} {statistics.median(ratios):6.2f} x floor   [{ratios[0]:.2f} .. {ratios[-1]:.2f}]   {micro:8.1f} us"
    )


def main() -> None:
    """Measure and print."""
    plan = compile_spec(SPEC).plan
    if plan is None:
        raise SystemExit("the bench's spec does not compile")
    content = {"spec": dict(line.split("=", 1) for line in SPEC.splitlines())}
    text = json.dumps(content)
    schema = {
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 2048}}},
    }
    validator = jsonschema.Draft202012Validator(schema)
    ratio(
        "spec compile / json.loads + jsonschema",
        lambda: compile_spec(SPEC),
        lambda: validator.validate(json.loads(text)),
        200,
    )

    interpreter = Interpreter(plan, {"redact": {"rules": ["customer.card:drop", "customer.email:mask=1:4:*"]}})

    def bare() -> bytes:
        row = json.loads(RECORD)
        row["customer"].pop("card", None)
        email = row["customer"]["email"]
        row["customer"]["email"] = email[0] + "*" * (len(email) - 5) + email[-4:]
        return json.dumps(row, separators=(",", ":")).encode()

    ratio("interpreter, redact / bare loop", lambda: interpreter.process(RECORD), bare, 2000)


if __name__ == "__main__":
    main()
