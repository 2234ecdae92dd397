"""Which of several ways a record takes by one of its fields: the same on every host, in every version."""

from __future__ import annotations

import hashlib

from apps.runtime.ops.records import Refused, Value, canonical_bytes


def bucket_of(record: dict[str, Value], path: tuple[str, ...], buckets: int) -> int:
    """A number from 0 below `buckets`, the same for equal values at `path`.

    It is the first eight bytes, as a big-endian number, of the SHA-256 of the value's canonical JSON, modulo `buckets`. Numbers
    count as they are written: 1 and 1.0 are two keys. Raises Refused `key_missing` when nothing stands at `path`.
    """
    value: Value = record
    for key in path:
        if not isinstance(value, dict) or key not in value:
            raise Refused("key_missing", f"The record has no field {'.'.join(path)}.")
        value = value[key]
    return int.from_bytes(hashlib.sha256(canonical_bytes(value)).digest()[:8], "big") % buckets
