"""The inbox: approvals that a user can decide, from stored data without comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apps.access.principals import Principal
from apps.approvals.models import Approval, Decision
from apps.approvals.selectors import approvals_to_decide, current_facts_of_all
from apps.core.ids import parse_id
from apps.deployments.models import Deployment

SHOWN = 50


@dataclass(frozen=True, slots=True)
class InboxCard:
    """One pending approval."""

    approval: Approval
    deployment: Deployment | None
    agents: int
    votes: int
    gained: Sequence[str]


@dataclass(frozen=True, slots=True)
class Inbox:
    """The pending approvals that expire first, and the total."""

    cards: Sequence[InboxCard]
    total: int

    @property
    def more(self) -> int:
        return self.total - len(self.cards)


def inbox_of(who: Principal) -> Inbox:
    """The first `SHOWN` approvals that `who` can decide. The number of queries is constant."""
    rows = approvals_to_decide(who)
    total = rows.count()
    shown = list(rows.order_by("expires_at", "pk")[:SHOWN])
    deployments = {row.approval_id: row for row in Deployment.objects.filter(approval_id__in=[a.pk for a in shown])}
    voted = set(Decision.objects.filter(approval__in=shown).values_list("approval_id", flat=True))
    # bases are read only for cards that depend on them
    facts = current_facts_of_all([approval for approval in shown if approval.pk in voted or approval.capabilities])
    wanted = {text for present in facts.values() for text in present.base.values() if text}
    bases = Deployment.objects.filter(pk__in={pk for text in wanted if (pk := parse_id(text)) is not None})
    had = {str(pk): set(names) for pk, names in bases.values_list("pk", "capabilities")}
    cards = []
    for approval in shown:
        now = facts.get(approval.pk)
        gained: set[str] = set()
        for base in set(now.base.values()) if now is not None else ():
            gained |= set(approval.capabilities) - had.get(base or "", set())
        cards.append(
            InboxCard(
                approval=approval,
                deployment=deployments.get(approval.pk),
                agents=len(approval.target_agent_ids),
                votes=now.approvals if now is not None else 0,
                gained=sorted(gained),
            )
        )
    return Inbox(cards, total)
