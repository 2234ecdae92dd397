"""The ops by name: what each takes and which capability it needs. Parsing only; nothing is run here."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_URL = 2048


@dataclass(frozen=True, slots=True)
class OpKind:
    """What is fixed about an op. `argument` describes what follows the colon, None when nothing may."""

    name: str
    argument: str | None = None
    capability: str | None = None
    needs_rules: bool = False
    needs_schema: bool = False


KINDS: dict[str, OpKind] = {
    kind.name: kind
    for kind in (
        OpKind("identity"),
        OpKind("dataguard_check", needs_schema=True),
        OpKind("dataguard_redact", needs_rules=True),
        OpKind("dataguard_fused", needs_rules=True, needs_schema=True),
        OpKind("http_post", argument="<url>", capability="action:http_post"),
        OpKind("exec", argument="<program>|<arg>|...", capability="action:exec"),
    )
}


@dataclass(frozen=True, slots=True)
class Op:
    """An op as a stage names it: `text` is `name` or `name:argument`."""

    name: str
    argument: str | None = None

    @property
    def kind(self) -> OpKind:
        return KINDS[self.name]

    @property
    def capability(self) -> str | None:
        return self.kind.capability

    @property
    def text(self) -> str:
        return self.name if self.argument is None else f"{self.name}:{self.argument}"


class OpError(ValueError):
    """The op's text is not understood: `code` is `unknown_op` or `bad_op_argument`."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


def parse_op(text: str) -> Op:
    """The op that `text` names. Raises OpError."""
    name, colon, argument = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise OpError("unknown_op", f"There is no op '{name[:40]}'.", "Use one of " + ", ".join(KINDS) + ".")
    if kind.argument is None:
        if colon:
            raise OpError("bad_op_argument", f"{name} takes no argument.", f"Write {name}; settings are in the config.")
        return Op(name)
    if not argument:
        raise OpError("bad_op_argument", f"{name} needs an argument.", f"Write {name}:{kind.argument}.")
    if name == "http_post":
        _check_url(argument)
    else:
        _check_command(argument)
    return Op(name, argument)


def command_of(argument: str) -> tuple[str, ...]:
    """The program and its arguments that the argument of an `exec` op names."""
    return tuple(argument.split("|"))


def url_problem(url: str) -> str | None:
    """Why `url` is not an http(s) URL without userinfo of at most 2,048 characters; None when it is one."""
    if len(url) > MAX_URL:
        return f"The URL has more than {MAX_URL} characters."
    if any(not "!" <= char <= "~" for char in url) or "\\" in url:
        return "The URL has characters that must be percent-encoded."
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "The URL is malformed."
    if parts.scheme not in ("http", "https"):
        return "The URL does not begin with http:// or https://."
    if "@" in parts.netloc:
        return "The URL holds a user name or password."
    if not host or port == 0:
        return "The URL names no host."
    return None


def _check_url(url: str) -> None:
    problem = url_problem(url)
    if problem is not None:
        raise OpError("bad_op_argument", problem, "Write http_post:https://host/path.")


def _check_command(argument: str) -> None:
    program = command_of(argument)[0]
    if not program.strip() or program != program.strip():
        hint = "Write exec:/usr/bin/program|first argument|second argument."
        raise OpError("bad_op_argument", "exec names no program.", hint)
