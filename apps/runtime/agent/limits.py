"""What this host allows, whatever is sent: set once, on the command line, by the owner of the host.

By default a pipeline may do nothing but read and write files below `--data-dir` (and nothing at all without it). Each
permission names one thing exactly; nothing that comes from the control plane is ever taken as a pattern or widens one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from apps.runtime.ops import url_problem
from apps.runtime.ops.exec import command_of
from apps.runtime.spec.plan import Plan

_PORTS = {"http": 80, "https": 443}
_VARIABLE = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class ActivationError(Exception):
    """The pipeline can't be started here: a stable code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class BadLimit(ValueError):
    """A permission on the command line is not valid; the text is one line with the reason."""


@dataclass(frozen=True, slots=True)
class UrlPrefix:
    """URLs of one scheme, host and port, whose path begins with these segments."""

    scheme: str
    host: str
    port: int
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> UrlPrefix:
        """The prefix in `text`. Raises BadLimit when it is no http(s) URL, or has a query, a fragment or dot segments."""
        prefix = _located(text)
        if prefix is None or "?" in text or "#" in text:
            raise BadLimit(f"{text!r} is not a URL prefix like https://host/path, without a query")
        last = prefix.segments[:-1] if prefix.segments and not prefix.segments[-1] else prefix.segments
        return cls(prefix.scheme, prefix.host, prefix.port, last)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{'/'.join(self.segments)}"

    def covers(self, url: str) -> bool:
        """Is `url` below this prefix? Scheme, host and port exactly, the path by whole segments, percent-encoding undone."""
        found = _located(url)
        return (
            found is not None
            and (found.scheme, found.host, found.port) == (self.scheme, self.host, self.port)
            and found.segments[: len(self.segments)] == self.segments
        )


def _located(url: str) -> UrlPrefix | None:
    """Where a URL points; None for one that another reader might take to point elsewhere."""
    if url_problem(url) is not None:
        return None
    parts = urlsplit(url)
    segments = tuple(unquote(part, errors="strict") if _utf8(part) else "/" for part in parts.path.split("/")[1:])
    if any(map(_ambiguous, segments)):
        return None
    return UrlPrefix(parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS[parts.scheme], segments)


def _ambiguous(segment: str) -> bool:
    """Might another reader take this segment, percent-encoding undone once, for several, or for a step up? Some undo it twice,
    some cut parameters (`..;a=b`) off."""
    bare = segment.partition(";")[0]
    return bare.strip() in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]|%[0-9a-fA-F]{2}", segment) is not None


def _utf8(text: str) -> bool:
    try:
        unquote(text, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Limits:
    """The permissions of this host.

    `data_dir`: the only folder whose files a pipeline touches. `egress`, `posts`: where records may be sent by the egress and
    by `http_post`. `programs`: absolute paths that `exec` may run, as they were written, with any
    arguments, or with exactly those that follow as in a spec (`/usr/bin/x|--fixed`). `variables`: names of environment
    variables that a bundle may set for such a program; `secrets`: the references (`env:NAME`, `file:/path`) it may name.
    """

    data_dir: Path | None = None
    egress: tuple[UrlPrefix, ...] = ()
    posts: tuple[UrlPrefix, ...] = ()
    programs: tuple[str, ...] = ()
    variables: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    state_dir: Path | None = None

    @classmethod
    def given(
        cls,
        data_dir: Path | None,
        *,
        egress: Iterable[str] = (),
        posts: Iterable[str] = (),
        programs: Iterable[str] = (),
        variables: Iterable[str] = (),
        secrets: Iterable[str] = (),
        state_dir: Path | None = None,
    ) -> Limits:
        """The permissions as they are written on the command line. Raises BadLimit for one that would not hold.

        `state_dir`, the agent's own state, and the data folder lie apart, and a program lies in neither.
        """
        data = data_dir.resolve() if data_dir else None
        state = state_dir.resolve() if state_dir else None
        if data is not None and state is not None and (data.is_relative_to(state) or state.is_relative_to(data)):
            raise BadLimit(
                "--data-dir and --state-dir must not lie inside each other: a pipeline could read the agent's key"
            )
        for program in programs:
            _check_program(program, [place for place in (data, state) if place is not None])
        if programs and data is None:
            raise BadLimit("--allow-exec needs --data-dir: programs are run there")
        for name in variables:
            if not _VARIABLE.match(name) or name.startswith(("LD_", "PYTHON")) or name in ("PATH", "BASH_ENV", "ENV"):
                raise BadLimit(f"{name!r} is not a variable that a pipeline may set: it changes which code is run")
        for text in secrets:
            if not (text.startswith("env:") and _VARIABLE.match(text[4:])) and not text.startswith("file:/"):
                raise BadLimit(f"{text!r} is not a secret like env:NAME or file:/path")
        return cls(
            data,
            tuple(UrlPrefix.parse(text) for text in egress),
            tuple(UrlPrefix.parse(text) for text in posts),
            tuple(programs),
            frozenset(variables),
            frozenset(secrets),
            state,
        )

    def as_dict(self) -> dict[str, object]:
        """What is allowed, for people: names and places, no secret's value."""
        return {
            "data_dir": str(self.data_dir) if self.data_dir else None,
            "egress": [str(prefix) for prefix in self.egress],
            "posts": [str(prefix) for prefix in self.posts],
            "programs": list(self.programs),
            "variables": sorted(self.variables),
            "secrets": sorted(self.secrets),
        }

    def path(self, text: str) -> Path:
        """`text` as a path below the data folder, links followed. Raises ActivationError `path_not_allowed`."""
        if self.data_dir is None:
            raise ActivationError("path_not_allowed", "this agent has no --data-dir")
        path = (self.data_dir / text).resolve()
        if not path.is_relative_to(self.data_dir) or path == self.data_dir:
            raise ActivationError("path_not_allowed", "the path leads out of the data folder")
        if self.state_dir is not None and path.is_relative_to(self.state_dir.resolve()):
            raise ActivationError("path_not_allowed", "the path leads into the agent's own state")
        return path

    def egress_url(self, url: str) -> str:
        """`url` if the egress may send there. Raises ActivationError `url_not_allowed`."""
        if not any(prefix.covers(url) for prefix in self.egress):
            raise ActivationError("url_not_allowed", "this agent was not started with --allow-egress for that URL")
        return url

    def check_post(self, url: str) -> None:
        """Raises ActivationError `post_not_allowed` unless `http_post` may send to `url`."""
        if not any(prefix.covers(url) for prefix in self.posts):
            raise ActivationError("post_not_allowed", "this agent was not started with --allow-post for that URL")

    def check_exec(self, argv: tuple[str, ...]) -> None:
        """Raises ActivationError `exec_not_allowed` unless `argv[0]` may be run, `exec_missing` when it can't be."""
        if argv[0] not in self.programs and "|".join(argv) not in self.programs:
            raise ActivationError("exec_not_allowed", "this agent was not started with --allow-exec for that program")
        if not os.access(argv[0], os.X_OK) or not Path(argv[0]).is_file():
            raise ActivationError("exec_missing", "the program is not there, or can't be executed")

    def check_plan(self, plan: Plan) -> None:
        """Raises ActivationError for the first thing that `plan` does and this host does not allow."""
        for stage in plan.stages:
            if stage.op == "http_post":
                self.check_post(stage.argument or "")
            elif stage.op == "exec":
                self.check_exec(command_of(stage.argument or ""))
            elif stage.capability is not None:
                raise ActivationError("capability_not_allowed", f"this agent knows nothing of {stage.capability}")

    def variables_for(self, wanted: Mapping[str, object]) -> dict[str, str]:
        """A bundle's environment for its programs, secrets resolved on this host.

        Raises ActivationError `variable_not_allowed`, `secret_not_allowed`, or `secret_missing`. No message holds a value.
        """
        found: dict[str, str] = {}
        for name, value in wanted.items():
            if name not in self.variables:
                raise ActivationError("variable_not_allowed", f"this agent was not started with --allow-env {name}")
            reference = value.get("secret_ref") if isinstance(value, Mapping) else None
            found[name] = str(value) if reference is None else self._secret(str(reference))
        return found

    def _secret(self, reference: str) -> str:
        if reference not in self.secrets:
            raise ActivationError("secret_not_allowed", f"this agent was not started with --allow-secret {reference}")
        kind, _, name = reference.partition(":")
        try:
            text = os.environ[name] if kind == "env" else Path(name).read_text().rstrip("\r\n")
        except (KeyError, OSError, UnicodeDecodeError):
            raise ActivationError("secret_missing", f"{reference} can't be read on this host") from None
        if "\0" in text:
            raise ActivationError("secret_missing", f"{reference} is not text")
        return text


def _check_program(program: str, never: list[Path]) -> None:
    name = program.partition("|")[0]
    path = Path(name)
    if not path.is_absolute() or os.path.normpath(name) != name:
        raise BadLimit(f"--allow-exec {program!r} is not an absolute path in its plain form")
    if any(path.resolve().is_relative_to(place) for place in never):
        raise BadLimit(f"--allow-exec {program!r} lies where a pipeline or the agent writes")
