"""What an op may do to the world outside the pipeline, as a port: the host that runs a plan decides what stands behind it.

The ops `http_post` and `exec` are pure on this side: they hand the record's bytes over and forward the record once the call
has returned. A host puts a client with allowlists of its own behind it, a dry run something that only writes down.
"""

from __future__ import annotations

from typing import Protocol

from apps.runtime.ops.records import Refused


class EffectFailed(Exception):
    """The effect did not happen, or it is not known whether it did, and this record is not to blame.

    The record counts as not processed: the caller may run it again, or stop. `message` holds no value of the record.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class EffectRefused(Refused):
    """The effect will never happen for this record: the stage refuses it, as any other op would."""


class Effects(Protocol):
    """Does what `http_post` and `exec` ask for. A call returns once the effect has happened.

    Both raise EffectRefused when this record must not pass, EffectFailed when the record may be tried again.
    """

    def http_post(self, url: str, body: bytes) -> None:
        """POST `body` to `url`, which is http or https, without userinfo, of at most 2,048 characters."""

    def exec(self, argv: tuple[str, ...], body: bytes) -> None:
        """Run `argv[0]` with the arguments `argv[1:]`, without a shell, and write `body` to its standard input."""


class _NoEffects:
    """For an op that names no capability, should it ask for an effect all the same: nothing is done, the record is not processed."""

    def http_post(self, url: str, body: bytes) -> None:
        raise EffectFailed("effects_missing", "This op names no capability, so it can't act on the outside world.")

    def exec(self, argv: tuple[str, ...], body: bytes) -> None:
        raise EffectFailed("effects_missing", "This op names no capability, so it can't act on the outside world.")


NO_EFFECTS: Effects = _NoEffects()
