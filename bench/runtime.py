"""The spec compiler against `json.loads` and a jsonschema check of the same content; the interpreter against the same redaction
written as a bare loop over `json.loads`/`json.dumps`."""

from __future__ import annotations

import json

import jsonschema

from apps.runtime.interpreter import Interpreter
from apps.runtime.spec import compile_spec
from bench.measure import ratio

SPEC = (
    "spec.version=1\npipeline.name=p\npipeline.target=SingleRing\n"
    "single_ring.stages.0.id=redact\nsingle_ring.stages.0.op=dataguard_redact\n"
)
RECORD = json.dumps({"id": 1, "total": 12.5, "customer": {"email": "ann@example.com", "card": "4111"}}).encode()


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
