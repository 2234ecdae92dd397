"""Writing and proving the chain."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785
import structlog
from django.conf import settings
from django.db import transaction

from apps.audit.models import SYSTEM_CHAIN, AuditEvent, ChainHead, Outcome, chain_of
from apps.core import clock, context
from apps.core.actors import ActorRef
from apps.core.db import lock_row
from apps.core.errors import Unavailable
from apps.core.ids import new_id

log = structlog.get_logger(__name__)

GENESIS = "0" * 64
COALESCE_SECONDS = 60


def _mac_keys() -> list[tuple[str, bytes]]:
    """(id, key) for the MACs of heads: the first makes them, any of them proves one."""
    keys: list[tuple[str, bytes]] = settings.BYTEOR_AUDIT_MAC_KEYS
    return keys


def _mac(key: bytes, chain: str, count: int, last_hash: str) -> str:
    return hmac.new(key, f"{chain}\n{count}\n{last_hash}".encode(), hashlib.sha256).hexdigest()


def _sealed(chain: str, count: int, last_hash: str) -> dict[str, str]:
    """The columns `mac` and `mac_key` of a head that stands there."""
    name, key = _mac_keys()[0]
    return {"mac": _mac(key, chain, count, last_hash), "mac_key": name}


def _is_proved(head: ChainHead) -> bool:
    """Does some key of the ring bear the head's MAC out?"""
    macs = [_mac(key, head.chain, head.count, head.hash) for _, key in _mac_keys()]
    return any(hmac.compare_digest(head.mac, mac) for mac in macs)


def _unproved(head: ChainHead) -> str:
    """Why no key bears the head out: it was changed, or the key that it names is not configured."""
    if head.mac_key and head.mac_key not in [name for name, _ in _mac_keys()]:
        return f"the head's MAC is under the key-encryption key '{head.mac_key}', which is not configured"
    return "the head's MAC does not verify"


def _carried_on(head: ChainHead, count: int, last_hash: str) -> dict[str, str]:
    """The seal of what follows `head`: none where `head` itself is not borne out, or tampering would be sealed over.

    Such a chain goes on, its events linked, and `verify` names its head from then on. Raises Unavailable while the key that
    the head names is not configured: only that key can tell.
    """
    if _is_proved(head):
        return _sealed(head.chain, count, last_hash)
    if head.mac_key and head.mac_key not in [name for name, _ in _mac_keys()]:
        raise Unavailable(f"The audit chain can't go on: {_unproved(head)}.", code="key_encryption_key_missing")
    log.error("an audit chain's head was changed by somebody else; it is not sealed again", chain=head.chain)
    return {}


def document(event: AuditEvent) -> dict[str, Any]:
    """The event as it is hashed and exported (everything but its own hash)."""
    return {
        "id": str(event.id),
        "chain": event.chain,
        "seq": event.seq,
        "timestamp": clock.rfc3339(event.created_at),
        "organization_id": str(event.organization_id) if event.organization_id else None,
        "outcome": event.outcome,
        "actor": event.actor,
        "actor_name": event.actor_name,
        "action": event.action,
        "target": event.target,
        "resource_scope": event.resource_scope,
        "request_id": event.request_id,
        "ip": event.ip,
        "credential_id": event.credential_id,
        "details": event.details,
    }


def _hash(event: AuditEvent) -> str:
    return hashlib.sha256(event.previous_hash.encode() + rfc8785.dumps(document(event))).hexdigest()


def _lock_head(chain: str) -> ChainHead:
    head = lock_row(ChainHead.objects.filter(pk=chain))
    if head is None:
        ChainHead.objects.bulk_create(
            [ChainHead(chain=chain, count=0, hash=GENESIS, **_sealed(chain, 0, GENESIS))], ignore_conflicts=True
        )
        head = lock_row(ChainHead.objects.filter(pk=chain))
    if head is None:
        raise RuntimeError("the chain head was neither found nor made")
    return head


def record(
    *,
    organization_id: uuid.UUID | None,
    action: str,
    actor: ActorRef,
    target: str,
    outcome: str = Outcome.ALLOWED,
    scope: Mapping[str, object] | None = None,
    details: Mapping[str, object] | None = None,
) -> AuditEvent:
    """Append one event to its organization's chain, in the caller's transaction.

    `scope` and `details` are JSON without secrets. Locks the chain's head until the transaction ends: call it last.
    Raises when the event can't be written, so that what it records does not happen either. A head that somebody else moved
    stays without a good MAC, whatever is written after it.
    """
    here = context.current()
    chain = chain_of(organization_id)
    now = clock.now()
    with transaction.atomic():
        head = _lock_head(chain)
        event = AuditEvent(
            id=new_id(),
            # milliseconds only: it must read back as it was hashed
            created_at=now.replace(microsecond=now.microsecond // 1000 * 1000),
            chain=chain,
            seq=head.count + 1,
            organization_id=organization_id,
            outcome=str(outcome),
            actor=str(actor)[:200],
            actor_name=actor.name[:200],
            action=action,
            target=target,
            resource_scope=_plain(scope or {}),
            request_id=here.request_id,
            ip=here.ip,
            credential_id=here.credential_id,
            details=_plain(details or {}),
            previous_hash=head.hash,
        )
        event.hash = _hash(event)
        event.save(force_insert=True)
        ChainHead.objects.filter(pk=chain).update(
            count=event.seq, hash=event.hash, **_carried_on(head, event.seq, event.hash)
        )
    return event


def record_denial(
    *,
    organization_id: uuid.UUID | None,
    action: str,
    actor: ActorRef,
    target: str,
    reason: str,
    scope: Mapping[str, object],
) -> None:
    """Put a refused attempt on record, in a transaction of its own.

    Denials of outsiders (`organization_id` None) go to the system chain, at most one per actor, action and minute.
    """
    with transaction.atomic():
        if organization_id is None:
            since = clock.now().timestamp() - COALESCE_SECONDS
            head = _lock_head(SYSTEM_CHAIN)
            recent = AuditEvent.objects.filter(
                chain=SYSTEM_CHAIN,
                seq__gt=head.count - 200,
                actor=str(actor)[:200],
                action=action,
                outcome=Outcome.DENIED,
                created_at__gte=clock.from_ms(int(since * 1000)),
            )
            if recent.exists():
                return
        record(
            organization_id=organization_id,
            action=action,
            actor=actor,
            target=target,
            outcome=Outcome.DENIED,
            scope=scope,
            details={"reason": reason},
        )


def _plain(value: Mapping[str, object]) -> dict[str, Any]:
    def convert(item: object) -> Any:
        if isinstance(item, Mapping):
            return {str(k): convert(v) for k, v in item.items()}
        if isinstance(item, list | tuple | set | frozenset):
            return [convert(v) for v in (sorted(item, key=str) if isinstance(item, set | frozenset) else item)]
        if item is None or isinstance(item, bool | str):
            return item
        if isinstance(item, int):
            # RFC 8785 numbers are doubles: what does not fit exactly is written as text
            return item if abs(item) <= 2**53 else str(item)
        if isinstance(item, float):
            return item
        return str(item)

    result = convert(value)
    return dict(result)


@dataclass(frozen=True, slots=True)
class Verification:
    """Outcome of a walk over one chain: `events` looked at; `broken_at` is the seq of the first bad link, or None."""

    ok: bool
    events: int
    head_hash: str
    broken_at: int | None = None
    problem: str = ""

    def as_dict(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "events": self.events,
            "head_hash": self.head_hash,
            "broken_at": self.broken_at,
            "problem": self.problem,
        }


def events_of(organization_id: uuid.UUID | None) -> Iterator[AuditEvent]:
    """Every event of a chain, oldest first, streamed."""
    return AuditEvent.objects.filter(chain=chain_of(organization_id)).order_by("seq").iterator(chunk_size=2000)


def verify(organization_id: uuid.UUID | None) -> Verification:
    """Walk the chain of an organization (None: the system chain), also after the organization was deleted.

    Names the first broken link: a changed, missing, inserted or re-ordered event, or a head that its MAC or the
    last event does not bear out.
    """
    chain = chain_of(organization_id)
    with transaction.atomic():
        head = lock_row(ChainHead.objects.filter(pk=chain))
        previous, expected = GENESIS, 1
        for event in events_of(organization_id):
            if event.seq != expected:
                return Verification(False, expected - 1, previous, expected, f"event {expected} is missing")
            if event.previous_hash != previous:
                return Verification(False, expected - 1, previous, expected, "does not link to the event before it")
            if _hash(event) != event.hash:
                return Verification(False, expected - 1, previous, expected, "its content was changed")
            previous, expected = event.hash, expected + 1
    count = expected - 1
    if head is None:
        return Verification(count == 0, count, previous, None if count == 0 else count, "" if count == 0 else "no head")
    if not _is_proved(head):
        return Verification(False, count, previous, count, _unproved(head))
    if head.count != count or head.hash != previous:
        return Verification(False, count, previous, count + 1, f"the head counts {head.count} events")
    return Verification(True, count, previous)


@dataclass(frozen=True, slots=True)
class Resealed:
    """How many heads got a MAC under the primary key, and {chain: why} for those that no key of the ring bears out."""

    moved: int
    unproved: dict[str, str]


def reseal(*, dry_run: bool = False) -> Resealed:
    """Give every head a MAC under the primary key, so that the former key may go. One that is not proved is left as it is.

    A head at a time, each in a transaction of its own: safe to stop, to repeat and to run beside what writes events.
    """
    here = _mac_keys()[0][0]
    moved, unproved = 0, {}
    for chain in list(ChainHead.objects.exclude(mac_key=here).order_by("pk").values_list("pk", flat=True)):
        with transaction.atomic():
            head = lock_row(ChainHead.objects.filter(pk=chain).exclude(mac_key=here))
            if head is None:
                continue
            if not _is_proved(head):
                unproved[chain] = _unproved(head)
                continue
            if not dry_run:
                ChainHead.objects.filter(pk=chain).update(**_sealed(chain, head.count, head.hash))
            moved += 1
    return Resealed(moved, unproved)


def missing_mac_keys() -> dict[str, int]:
    """{id of a key-encryption key that is not configured: how many heads have their MAC from it}."""
    ring = [name for name, _ in _mac_keys()]
    rows = ChainHead.objects.exclude(mac_key="").exclude(mac_key__in=ring)
    return dict(Counter(rows.values_list("mac_key", flat=True)))
