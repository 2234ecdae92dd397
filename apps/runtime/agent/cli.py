"""`byteor-agent run | verify | status | incident | rotate-key`."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from random import SystemRandom
from typing import Any

from apps.runtime.agent import VERSION
from apps.runtime.agent.client import BadAddress, Client, Refused, Unreachable
from apps.runtime.agent.enroll import Identity, enroll, identity, split_environment_url
from apps.runtime.agent.incident import write_incident
from apps.runtime.agent.journal import Journal
from apps.runtime.agent.limits import BadLimit, Limits
from apps.runtime.agent.programs import Programs
from apps.runtime.agent.service import Agent
from apps.runtime.agent.state import State, StateError
from apps.runtime.agent.supervise import TRIAL_SECONDS, Supervisor
from apps.runtime.agent.upgrade import EXIT_UPGRADE, Upgrader, check_state
from apps.runtime.bundle import read_bundle, verify_bundle
from apps.runtime.trust import KeySet, TrustedKey, TrustError, accept_keyset, kid_of, unique_members

STOP_SECONDS = 15.0
UPGRADE_SECONDS = 900.0
FIRST_LOOK_SECONDS = 60.0
DAMAGED = "damaged"

_ABOUT = """Runs approved pipelines on this host. It runs nothing that it could not verify, and does nothing that was not allowed
here, on its own command line: what the control plane sends can never widen that. By default a pipeline may read and write
files below --data-dir, and nothing else."""

_LIMITS = """Each may be given several times, and names one thing exactly. A bundle that needs more is refused, and what runs
keeps running."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="byteor-agent", description=_ABOUT)
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="enroll on first start, then run until stopped", description=_ABOUT)
    run.add_argument("--environment-url", metavar="URL", help="URL of the environment at the API (first start)")
    token = run.add_mutually_exclusive_group()
    token.add_argument(
        "--enrollment-token", metavar="TOKEN", help="one-time token (first start); or BYTEOR_ENROLLMENT_TOKEN"
    )
    token.add_argument("--enrollment-token-file", type=Path, metavar="FILE", help="a file that holds it")
    run.add_argument("--name", help="how this agent is called (default: from the host name)")
    run.add_argument("--allow-http", action="store_true", help="speak plain http to the control plane beyond loopback")
    run.add_argument("--supervise", action="store_true", help="start the agent again when it ends (as systemd would)")
    run.add_argument(
        "--allow-upgrade",
        action="store_true",
        help="take newer agents that a key of the organization signed, each tried before it is chosen (supervises too)",
    )
    run.add_argument("--supervised", type=int, metavar="FD", help=argparse.SUPPRESS)
    run.add_argument("--upgrade-every", type=float, metavar="SECONDS", default=UPGRADE_SECONDS, help=argparse.SUPPRESS)
    run.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)
    run.add_argument("--trial-seconds", type=float, metavar="SECONDS", default=TRIAL_SECONDS, help=argparse.SUPPRESS)
    _limit_options(run.add_argument_group("what pipelines may do on this host", _LIMITS))
    rotate = commands.add_parser("rotate-key", help="get a new runtime key (the agent must not be running)")
    rotate.add_argument("--allow-http", action="store_true", help="speak plain http beyond loopback")
    status = commands.add_parser("status", help="what this host runs, as JSON")
    incident = commands.add_parser("incident", help="write an incident capture of this host")
    incident.add_argument("--output", type=Path, default=Path("incident.zip"), metavar="FILE", help="(incident.zip)")
    check = commands.add_parser("self-check")  # what an older version asks a newer one before it is tried
    for command in (run, rotate, status, incident, check):
        command.add_argument(
            "--state-dir", type=Path, required=True, metavar="DIR", help="where the agent keeps its key and its state"
        )
    verify = commands.add_parser("verify", help="check a bundle against a key set, offline")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE", help="the archive")
    verify.add_argument(
        "--keys",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON of GET …/signing-keys, of the agent or the organization, or a keys.json",
    )
    return parser


def _limit_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="the only folder whose files a pipeline touches")
    for option, metavar, words in (
        (
            "--allow-egress",
            "URL",
            "the egress may send to this URL and below: scheme, host, port exact, path by segments",
        ),
        ("--allow-post", "URL", "http_post may send to this URL and below, likewise"),
        (
            "--allow-exec",
            "PROGRAM",
            "exec may run this program (absolute path, exact) with any arguments; 'PROGRAM|ARG|…': with exactly these",
        ),
        (
            "--allow-env",
            "NAME",
            "a bundle may set this environment variable for such a program; what the program makes of it is yours to know",
        ),
        ("--allow-secret", "REF", "a bundle may have this secret put into one: env:NAME or file:/path"),
    ):
        group.add_argument(option, action="append", default=[], metavar=metavar, help=words)


def _limits(options: argparse.Namespace) -> Limits:
    return Limits.given(
        options.data_dir,
        egress=options.allow_egress,
        posts=options.allow_post,
        programs=options.allow_exec,
        variables=options.allow_env,
        secrets=options.allow_secret,
        state_dir=options.state_dir,
    )


def _token(options: argparse.Namespace) -> str:
    if options.enrollment_token_file is not None:
        return str(options.enrollment_token_file.read_text().strip())
    return str(options.enrollment_token or os.environ.get("BYTEOR_ENROLLMENT_TOKEN", ""))


def _identity(options: argparse.Namespace, state: State) -> Identity:
    known = identity(state)
    if known is not None:
        state.remove("enrolling.json")  # a kill right after the answer was kept left it
        if options.environment_url:
            base, _, environment_id = split_environment_url(options.environment_url)
            if environment_id != known.environment_id or base.rstrip("/") != known.base_url:
                raise StateError("this state folder belongs to another environment")
        key = os.environ.get("BYTEOR_AGENT_API_KEY")
        same = os.environ.get("BYTEOR_AGENT_ID", known.agent_id) == known.agent_id
        if key and same and key != known.api_key:
            return replace(known, api_key=key)
        return known
    token = _token(options)
    if not options.environment_url or not token:
        raise StateError("the first start needs --environment-url and an enrollment token")
    base, path, _ = split_environment_url(options.environment_url)
    return enroll(state, Client(base, allow_http=options.allow_http), path, token, options.name, Journal().log)


def _supervise(options: argparse.Namespace) -> int:
    _limits(options)  # what is wrong with the command line is reported at once
    programs = Programs(State(options.state_dir, lock=False))
    return Supervisor(programs, options.arguments, Journal().log, options.trial_seconds).run()


def _run(options: argparse.Namespace) -> int:
    if (options.supervise or options.allow_upgrade) and options.supervised is None:
        return _supervise(options)
    if options.data_dir is not None:
        options.data_dir.mkdir(parents=True, exist_ok=True)
    limits = _limits(options)
    state = State(options.state_dir)
    me = _identity(options, state)
    base = os.environ.get("BYTEOR_API_BASE_URL", me.base_url)
    client = Client(base, allow_http=options.allow_http)
    well = _supervisor_notifier(options.supervised)
    agent = Agent(state, me, client, limits, heartbeat_taken=well, must_resume=options.trial)
    _end_on_signal(agent)
    if options.allow_upgrade and options.supervised is not None:
        threading.Thread(target=_look_for_upgrades, args=(agent, options.upgrade_every), daemon=True).start()
    agent.run()
    return 0 if agent.stopping.is_set() else 1


def _supervisor_notifier(supervisor: int | None) -> Callable[[], None]:
    """Return what notifies the supervisor, if there is one, that all is well."""
    if supervisor is None:
        return lambda: None
    os.set_blocking(supervisor, False)
    os.set_inheritable(supervisor, False)

    def notify() -> None:
        with contextlib.suppress(OSError):
            os.write(supervisor, b"+")

    return notify


def _look_for_upgrades(agent: Agent, seconds: float) -> None:
    upgrader = Upgrader(agent.state, agent.keyring, agent.call, agent.log)
    pause = min(seconds, FIRST_LOOK_SECONDS)
    while not agent.stopping.wait(pause * (0.5 + SystemRandom().random())):
        pause = seconds
        try:
            found = upgrader.look(agent.quiet)
        except Unreachable:
            continue
        except Exception as error:  # whatever is wrong with an offer or with this host, it is looked for again
            agent.log(f"looking for a newer agent failed: {type(error).__name__}: {error}")
            continue
        if found:
            agent.stop()
            agent.runner.shut_down()
            os._exit(EXIT_UPGRADE)


def _end_on_signal(agent: Agent) -> None:
    """End cleanly on SIGTERM and SIGINT, whatever the main thread waits for.

    A handler runs in the main thread, between any two of its steps, and must take no lock: so it only wakes another thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        os.read(reader, 1)
        patience = threading.Timer(STOP_SECONDS, os._exit, (0,))
        patience.daemon = True
        patience.start()
        agent.stop()
        agent.runner.shut_down()
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _rotate(options: argparse.Namespace) -> int:
    state = State(options.state_dir, create=False)
    me = identity(state)
    if me is None:
        raise StateError("this agent has not enrolled")
    Agent(state, me, Client(me.base_url, allow_http=options.allow_http), Limits()).rotate_key()
    return 0


def _self_check(options: argparse.Namespace) -> int:
    check_state(State(options.state_dir, lock=False, create=False))
    print(json.dumps({"version": VERSION}))
    return 0


def _shown(state: State, name: str) -> Any:
    """Read a file of the state folder, for a person: one that is damaged is reported."""
    try:
        return state.read(name)
    except StateError:
        return DAMAGED


def _health(state: State) -> dict[str, Any] | str | None:
    """How what runs was doing when that last changed."""
    value = _shown(state, "health.json")
    if value == DAMAGED:
        return DAMAGED
    return (
        {name: value.get(name) for name in ("ok", "detail", "at_unix_ms", "last_problem", "allowed")} if value else None
    )


def _status(options: argparse.Namespace) -> int:
    state = State(options.state_dir, lock=False, create=False)
    me = identity(state)
    keys = state.keys()
    waiting = _shown(state, "outbox.json")
    report = {
        "agent_id": me.agent_id if me else None,
        "environment_id": me.environment_id if me else None,
        "control_plane": me.base_url if me else None,
        "running": _shown(state, "active.json"),
        "health": _health(state),
        "refused": _refused(state),
        "memory": _shown(state, "memory.json"),
        "key_set_version": keys.version if keys else None,
        "reports_waiting": DAMAGED if waiting == DAMAGED else len(waiting or []),
        "version": VERSION,
        "program": Programs(state).as_dict(),
    }
    print(json.dumps(report, indent=2))
    return 0


def _refused(state: State) -> dict[str, Any] | str:
    """Stage → code → how many records what runs has refused since it started; the last of them are in `refused.jsonl`."""
    value = _shown(state, "health.json")
    return DAMAGED if value == DAMAGED else (value or {}).get("refused") or {}


def _verify(options: argparse.Namespace) -> int:
    keys = _keys_in(options.keys)
    bundle = verify_bundle(read_bundle(options.bundle.read_bytes()), keys=keys)
    print(json.dumps({"ok": True, "bundle_sha256": bundle.sha256, "manifest": bundle.manifest}, indent=2))
    return 0


def _keys_in(path: Path) -> KeySet | dict[str, TrustedKey]:
    """The keys in a file: an agent's `GET …/signing-keys` (envelopes, or the list of them), an organization's (its `results`), or
    the `keys.json` of a state folder. Only the first is checked to be signed. ValueError for anything else.
    """
    listed = json.loads(path.read_bytes(), object_pairs_hook=unique_members)
    envelopes = listed.get("envelopes") if isinstance(listed, dict) else listed
    if isinstance(envelopes, list) and envelopes:
        return accept_keyset(accept_keyset(None, envelopes[:1]), envelopes[1:])
    rows = (listed.get("keys") or listed.get("results")) if isinstance(listed, dict) else None
    try:
        keys = [_key_of(row) for row in rows or ()]
    except (TypeError, KeyError, ValueError, AttributeError):
        keys = []
    if not keys:
        raise ValueError(
            f"{path} holds no keys: take GET …/signing-keys of the agent or the organization, or keys.json"
        )
    return {key.kid: key for key in keys}


def _key_of(row: dict[str, Any]) -> TrustedKey:
    public = bytes.fromhex(row["public"]) if "public" in row else base64.b64decode(row["public_key"], validate=True)
    if row["kid"] != kid_of(public) or row["status"] not in ("active", "retired", "revoked"):
        raise ValueError("a key's id is not that of its bytes, or its status is unknown")
    return TrustedKey(
        row["kid"], public, row["status"], _unix_ms(row.get("not_before")), _unix_ms(row.get("not_after"))
    )


def _unix_ms(value: object) -> int | None:
    if isinstance(value, str):
        return int(datetime.fromisoformat(value).timestamp() * 1000)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _incident(options: argparse.Namespace) -> int:
    write_incident(State(options.state_dir, lock=False, create=False), options.output)
    print(options.output)
    return 0


_COMMANDS = {
    "run": _run,
    "rotate-key": _rotate,
    "status": _status,
    "verify": _verify,
    "incident": _incident,
    "self-check": _self_check,
}


def main(argv: list[str] | None = None) -> int:
    """The command. 0 done, 1 refused, 2 wrong usage; each error is one line on standard error."""
    given = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(given)
    options.arguments = given[1:]
    try:
        return _COMMANDS[options.command](options)
    except (StateError, BadAddress, BadLimit) as error:
        print(f"byteor-agent: {error}", file=sys.stderr)
        return 2
    except (Refused, Unreachable, TrustError) as error:
        print(f"byteor-agent: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"byteor-agent: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
