"""Write and verify audit chains."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import rfc8785
import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from apps.audit.coalescing import coalescer
from apps.audit.models import AuditEvent, ChainHead, Outcome, chain_of
from apps.core import clock, context
from apps.core.actors import ActorRef
from apps.core.db import lock_row, outside_transaction
from apps.core.errors import Unavailable
from apps.core.ids import new_id

log = structlog.get_logger(__name__)

GENESIS = "0" * 64
VERIFY_BATCH = 2000


def _mac_keys() -> list[tuple[str, bytes]]:
    """The (id, key) pairs for MACs of heads: the first one signs, each of them verifies."""
    keys: list[tuple[str, bytes]] = settings.BYTEOR_AUDIT_MAC_KEYS
    return keys


def _mac(key: bytes, chain: str, count: int, last_hash: str) -> str:
    return hmac.new(key, f"{chain}\n{count}\n{last_hash}".encode(), hashlib.sha256).hexdigest()


def _mac_columns(chain: str, count: int, last_hash: str) -> dict[str, str]:
    """Return the columns `mac` and `mac_key` of a head with this count and hash."""
    name, key = _mac_keys()[0]
    return {"mac": _mac(key, chain, count, last_hash), "mac_key": name}


def _mac_verifies(head: ChainHead) -> bool:
    """True if any configured key verifies the head's MAC."""
    macs = [_mac(key, head.chain, head.count, head.hash) for _, key in _mac_keys()]
    return any(hmac.compare_digest(head.mac, mac) for mac in macs)


def _mac_problem(head: ChainHead) -> str:
    """Explain why no key verifies the head: it was changed, or the key it names is not configured."""
    if head.mac_key and head.mac_key not in [name for name, _ in _mac_keys()]:
        return f"the head's MAC is under the key-encryption key '{head.mac_key}', which is not configured"
    return "the head's MAC does not verify"


def _next_mac_columns(head: ChainHead, count: int, last_hash: str) -> dict[str, str]:
    """Return the MAC columns of the event after `head`: none if `head` itself does not verify.

    A new MAC would hide the tampering. Such a chain continues, its events linked, and `verify` reports its head from
    then on. Raises Unavailable while the key that the head names is not configured: only that key can verify it.
    """
    if _mac_verifies(head):
        return _mac_columns(head.chain, count, last_hash)
    if head.mac_key and head.mac_key not in [name for name, _ in _mac_keys()]:
        raise Unavailable(
            f"The audit chain can't be continued: {_mac_problem(head)}.", code="key_encryption_key_missing"
        )
    log.error("audit chain head was changed outside this program; its MAC is not renewed", chain=head.chain)
    return {}


def document(event: AuditEvent) -> dict[str, Any]:
    """Return the event as it is hashed and exported: everything except its own hash."""
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
            [ChainHead(chain=chain, count=0, hash=GENESIS, **_mac_columns(chain, 0, GENESIS))], ignore_conflicts=True
        )
        head = lock_row(ChainHead.objects.filter(pk=chain))
    if head is None:
        raise RuntimeError("the chain head was neither found nor created")
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
    Raises if the event can't be written, so that the change it describes is rolled back too. A head that was changed
    outside this program never gets a valid MAC again.
    """
    here = context.current()
    chain = chain_of(organization_id)
    now = clock.now()
    with transaction.atomic():
        head = _lock_head(chain)
        event = AuditEvent(
            id=new_id(),
            # milliseconds only: the stored value must equal the hashed one
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
            count=event.seq, hash=event.hash, **_next_mac_columns(head, event.seq, event.hash)
        )
    return event


class AuditScope(Protocol):
    """A node of the tree with its parents, as the app `tenancy` defines it."""

    @property
    def organization_id(self) -> uuid.UUID: ...

    def as_dict(self) -> dict[str, str]: ...


def record_in(
    scope: AuditScope,
    *,
    action: str,
    actor: ActorRef,
    target: str,
    details: Mapping[str, object] | None = None,
) -> None:
    """Record an allowed change within `scope`. See `record`."""
    record(
        organization_id=scope.organization_id,
        action=action,
        actor=actor,
        target=target,
        scope=scope.as_dict(),
        details=details,
    )


def record_denial(
    *,
    organization_id: uuid.UUID | None,
    action: str,
    actor: ActorRef,
    target: str,
    reason: str,
    scope: Mapping[str, object],
    any_target: bool = False,
) -> None:
    """Record a refused attempt, at most once per actor, action, target and hour (see `record_repeating`).

    With `any_target`, once whatever the target, for attempts whose target the caller chooses freely.
    """
    record_repeating(
        key=(organization_id, str(actor), action, "" if any_target else (target, reason)),
        organization_id=organization_id,
        action=action,
        actor=actor,
        target=target,
        outcome=Outcome.DENIED,
        scope=scope,
        details={"reason": reason},
    )


def record_view(
    *, organization_id: uuid.UUID | None, actor: ActorRef, target: str, scope: Mapping[str, object] | None = None
) -> None:
    """Record that platform staff viewed a tenant's data, at most once per person, target and hour."""
    record_repeating(
        key=(organization_id, str(actor), "staff.viewed", target),
        organization_id=organization_id,
        action="staff.viewed",
        actor=actor,
        target=target,
        scope=scope,
    )


def record_repeating(*, key: Hashable, details: Mapping[str, object] | None = None, **event: Any) -> None:
    """Append an event unless one with the same `key` was written this hour.

    The next event's `details.suppressed` is the number of events that were not written. Uses its own transaction, also
    when the caller is in one that may be rolled back: within a request the event is written at the request's end.
    """
    suppressed = coalescer.admit(key)
    if suppressed is None:
        return
    more = {"suppressed": suppressed} if suppressed else {}

    def write() -> None:
        try:
            record(details={**(details or {}), **more}, **event)
        except BaseException:
            coalescer.forget(key)
            raise

    outside_transaction(write)


def _plain(value: Mapping[str, object]) -> dict[str, Any]:
    def convert(item: object) -> Any:
        if isinstance(item, Mapping):
            return {str(k): convert(v) for k, v in item.items()}
        if isinstance(item, list | tuple | set | frozenset):
            return [convert(v) for v in (sorted(item, key=str) if isinstance(item, set | frozenset) else item)]
        if item is None or isinstance(item, bool | str):
            return item
        if isinstance(item, int):
            # RFC 8785 numbers are doubles: an integer outside of the range in which each is exact is written as text
            return item if abs(item) < 2**53 else str(item)
        if isinstance(item, float):
            return item
        return str(item)

    result = convert(value)
    return dict(result)


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of verifying a chain, or a part of it.

    `events` is the number of events up to the last one checked, `head_hash` its hash. `broken_at` is the seq of the
    first bad link, or None. `next` is the seq to continue after, None at the head. `head` is the head's position at the
    start.
    """

    ok: bool
    events: int
    head_hash: str
    broken_at: int | None = None
    problem: str = ""
    next: int | None = None
    head: tuple[int, str] = (0, GENESIS)

    def as_dict(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "events": self.events,
            "head_hash": self.head_hash,
            "broken_at": self.broken_at,
            "problem": self.problem,
        }


def events_of(organization_id: uuid.UUID | None) -> Iterator[AuditEvent]:
    """Iterate over every event of a chain, oldest first."""
    return AuditEvent.objects.filter(chain=chain_of(organization_id)).order_by("seq").iterator(chunk_size=2000)


def events_about(target: str, organization_id: uuid.UUID | None, *, most: int) -> QuerySet[AuditEvent]:
    """The newest `most` events about `target` (`environment:<id>`), in the chain of the organization or of the system."""
    rows = AuditEvent.objects.filter(target=target, chain=chain_of(organization_id))
    return rows.order_by("-id")[:most]


def _links(chain: str, after: int, upto: int) -> Iterator[AuditEvent]:
    """Iterate over the events with `after` < seq <= `upto` in batches, so that no statement or transaction is long."""
    while after < upto:
        rows = AuditEvent.objects.filter(chain=chain, seq__gt=after, seq__lte=upto).order_by("seq")[:VERIFY_BATCH]
        batch = list(rows)
        yield from batch
        if len(batch) < VERIFY_BATCH:
            return
        after = batch[-1].seq


def verify(
    organization_id: uuid.UUID | None,
    *,
    after: int = 0,
    limit: int | None = None,
    expect: tuple[int, str] | None = None,
) -> Verification:
    """Verify the chain of an organization (None: the system chain), also after the organization was deleted.

    Takes no lock. Verification ends at the head read at its start; later events belong to the next run. Reports the
    first broken link: a changed, missing, inserted or re-ordered event, or a head that neither its MAC nor the last
    event confirms. `after` and `limit` verify a part: the event with seq `after` is taken as verified. `expect` is the
    (count, hash) of a head recorded earlier: the chain must still contain that event, which detects a chain restored as
    a whole.
    """
    chain = chain_of(organization_id)
    head = ChainHead.objects.filter(pk=chain).first()
    count, at_head = (head.count, head.hash) if head is not None else (0, GENESIS)
    starting_head = (count, at_head)
    previous, expected = GENESIS, after + 1

    def broken(at: int, problem: str) -> Verification:
        return Verification(False, expected - 1, previous, at, problem, head=starting_head)

    if after:
        before = AuditEvent.objects.filter(chain=chain, seq=after).first()
        if before is None:
            return broken(after, f"event {after} is missing")
        previous = before.hash
    problem = ""
    if head is not None and not _mac_verifies(head):
        # its count is as untrustworthy as its hash: verify every event there is
        problem, count = _mac_problem(head), AuditEvent.objects.filter(chain=chain).count()
    upto = count if limit is None else min(count, after + limit)
    for event in _links(chain, after, upto):
        if event.seq != expected:
            return broken(expected, f"event {expected} is missing")
        if event.previous_hash != previous:
            return broken(expected, "does not link to the event before it")
        if _hash(event) != event.hash:
            return broken(expected, "its content was changed")
        if expect is not None and event.seq == expect[0] and event.hash != expect[1]:
            return broken(expected, "it is not the event that was recorded earlier")
        previous, expected = event.hash, expected + 1
    seen = expected - 1
    if seen < upto:
        return broken(expected, f"event {expected} is missing")
    if seen < count:
        return Verification(True, seen, previous, next=seen, head=starting_head)
    if problem:
        return broken(seen, problem)
    if previous != at_head:
        return broken(expected, f"the head counts {count} events")
    if expect is not None and expect[0] > count:
        return broken(expected, f"{expect[0]} events were recorded earlier")
    if (extra := _first_event_beyond_head(chain, count)) is not None:
        return broken(extra, "the head does not count it")
    return Verification(True, seen, previous, head=starting_head)


def _first_event_beyond_head(chain: str, count: int) -> int | None:
    """Return the seq of the first event that no head counts, or None.

    An event and the head that counts it are written in one transaction: a reader that sees the event sees that head.
    """
    last = AuditEvent.objects.filter(chain=chain, seq__gt=count).order_by("-seq").values_list("seq", flat=True).first()
    if last is None:
        return None
    now = ChainHead.objects.filter(pk=chain).values_list("count", flat=True).first() or 0
    return now + 1 if now < last else None


@dataclass(frozen=True, slots=True)
class Resealed:
    """Number of heads that got a MAC under the primary key, and {chain: problem} for those that no configured key
    verifies."""

    moved: int
    unproved: dict[str, str]


def reseal(*, dry_run: bool = False) -> Resealed:
    """Give every head a MAC under the primary key, so that the former key can be removed.

    A head that does not verify is left unchanged. Each head is updated in its own transaction: safe to stop, to repeat
    and to run while events are written.
    """
    here = _mac_keys()[0][0]
    moved, unproved = 0, {}
    for chain in list(ChainHead.objects.exclude(mac_key=here).order_by("pk").values_list("pk", flat=True)):
        with transaction.atomic():
            head = lock_row(ChainHead.objects.filter(pk=chain).exclude(mac_key=here))
            if head is None:
                continue
            if not _mac_verifies(head):
                unproved[chain] = _mac_problem(head)
                continue
            if not dry_run:
                ChainHead.objects.filter(pk=chain).update(**_mac_columns(chain, head.count, head.hash))
            moved += 1
    return Resealed(moved, unproved)


def missing_mac_keys() -> dict[str, int]:
    """Count the heads per key-encryption key that is not configured, by the id of that key."""
    ring = [name for name, _ in _mac_keys()]
    rows = ChainHead.objects.exclude(mac_key="").exclude(mac_key__in=ring)
    return dict(Counter(rows.values_list("mac_key", flat=True)))
