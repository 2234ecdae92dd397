"""`byteor-agent run | verify | status | incident | rotate-key`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from apps.runtime.agent import VERSION
from apps.runtime.agent.client import BadAddress, Client, Refused, Unreachable
from apps.runtime.agent.enroll import Identity, enroll, identity, split_environment_url
from apps.runtime.agent.incident import write_incident
from apps.runtime.agent.pipeline import Limits
from apps.runtime.agent.service import Agent
from apps.runtime.agent.state import State, StateError
from apps.runtime.bundle import read_bundle, verify_bundle
from apps.runtime.trust import TrustError, accept_keyset


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="byteor-agent", description="Runs approved pipelines on this host.")
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="enroll on first start, then run until stopped")
    run.add_argument("--environment-url", help="URL of the environment at the API")
    token = run.add_mutually_exclusive_group()
    token.add_argument("--enrollment-token", help="or BYTEOR_ENROLLMENT_TOKEN")
    token.add_argument("--enrollment-token-file", type=Path)
    run.add_argument("--name")
    run.add_argument("--data-dir", type=Path, help="the only folder whose files a pipeline may touch")
    run.add_argument(
        "--allow-egress", action="append", default=[], metavar="URL", help="a URL prefix a pipeline may send to"
    )
    run.add_argument("--allow-http", action="store_true", help="speak plain http beyond loopback")
    rotate = commands.add_parser("rotate-key", help="get a new runtime key (the agent must not be running)")
    rotate.add_argument("--allow-http", action="store_true")
    status = commands.add_parser("status", help="what this host runs")
    incident = commands.add_parser("incident", help="write an incident capture of this host")
    incident.add_argument("--output", type=Path, default=Path("incident.zip"))
    for command in (run, rotate, status, incident):
        command.add_argument("--state-dir", type=Path, required=True)
    verify = commands.add_parser("verify", help="check a bundle against a key set, offline")
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--keys", type=Path, required=True, help="JSON of GET …/signing-keys")
    return parser


def _token(options: argparse.Namespace) -> str:
    if options.enrollment_token_file is not None:
        return str(options.enrollment_token_file.read_text().strip())
    return str(options.enrollment_token or os.environ.get("BYTEOR_ENROLLMENT_TOKEN", ""))


def _identity(options: argparse.Namespace, state: State) -> Identity:
    known = identity(state)
    if known is not None:
        if options.environment_url:
            base, _, environment_id = split_environment_url(options.environment_url)
            if environment_id != known.environment_id or base.rstrip("/") != known.base_url:
                raise StateError("this state folder belongs to another environment")
        key = os.environ.get("BYTEOR_AGENT_API_KEY")
        same = os.environ.get("BYTEOR_AGENT_ID", known.agent_id) == known.agent_id
        if key and same and key != known.api_key:
            return Identity(**{**{n: getattr(known, n) for n in Identity.__dataclass_fields__}, "api_key": key})
        return known
    token = _token(options)
    if not options.environment_url or not token:
        raise StateError("the first start needs --environment-url and an enrollment token")
    base, path, _ = split_environment_url(options.environment_url)
    return enroll(state, Client(base, allow_http=options.allow_http), path, token, options.name)


def _run(options: argparse.Namespace) -> int:
    if options.data_dir is not None:
        options.data_dir.mkdir(parents=True, exist_ok=True)
    state = State(options.state_dir)
    me = _identity(options, state)
    base = os.environ.get("BYTEOR_API_BASE_URL", me.base_url)
    client = Client(base, allow_http=options.allow_http)
    agent = Agent(state, me, client, Limits(options.data_dir, tuple(options.allow_egress)))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end(agent))
    agent.run()
    return 0


def _end(agent: Agent) -> None:
    # a waiting poll holds the main thread for up to 25 s: what runs is stopped here, cleanly, and the process ends
    agent.stop()
    agent.runner.shut_down()
    os._exit(0)


def _rotate(options: argparse.Namespace) -> int:
    state = State(options.state_dir)
    me = identity(state)
    if me is None:
        raise StateError("this agent has not enrolled")
    Agent(state, me, Client(me.base_url, allow_http=options.allow_http), Limits(None)).rotate_key()
    return 0


def _status(options: argparse.Namespace) -> int:
    state = State(options.state_dir, lock=False)
    me = identity(state)
    keys = state.keys()
    report = {
        "agent_id": me.agent_id if me else None,
        "environment_id": me.environment_id if me else None,
        "control_plane": me.base_url if me else None,
        "running": state.read("active.json"),
        "memory": state.read("memory.json"),
        "key_set_version": keys.version if keys else None,
        "reports_waiting": len(state.read("outbox.json") or []),
        "version": VERSION,
    }
    print(json.dumps(report, indent=2))
    return 0


def _verify(options: argparse.Namespace) -> int:
    listed = json.loads(options.keys.read_bytes())
    envelopes = listed["envelopes"] if isinstance(listed, dict) else listed
    keys = accept_keyset(None, envelopes[:1])
    keys = accept_keyset(keys, envelopes[1:])
    bundle = verify_bundle(read_bundle(options.bundle.read_bytes()), keys=keys)
    print(json.dumps({"ok": True, "bundle_sha256": bundle.sha256, "manifest": bundle.manifest}, indent=2))
    return 0


def _incident(options: argparse.Namespace) -> int:
    write_incident(State(options.state_dir, lock=False), options.output)
    print(options.output)
    return 0


_COMMANDS = {"run": _run, "rotate-key": _rotate, "status": _status, "verify": _verify, "incident": _incident}


def main(argv: list[str] | None = None) -> int:
    """The command. 0 done, 1 refused, 2 wrong usage; each error is one line on standard error."""
    options = _parser().parse_args(argv)
    try:
        return _COMMANDS[options.command](options)
    except (StateError, BadAddress) as error:
        print(f"byteor-agent: {error}", file=sys.stderr)
        return 2
    except (Refused, Unreachable, TrustError) as error:
        print(f"byteor-agent: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"byteor-agent: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
