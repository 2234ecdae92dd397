"""Equality of JSON values."""

from __future__ import annotations

import json


def equal_json(one: object, other: object) -> bool:
    """True if both are the same JSON value, of the same types.

    Python's `==` takes `1`, `1.0` and `true` for equal. Where what differs is validated, such a value would pass unseen. The
    order of an object's members does not matter.
    """
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
