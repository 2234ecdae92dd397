"""Live pages, which update automatically.

A live page consists of cards. The server renders each card for the first response and for every poll alike, so that an open page
shows the same as a reload. A poll names the cards that the browser has; only those that differ are sent.
`static/console/live_page.js` is the client.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.middleware.csrf import get_token
from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe

from apps.core.visible import visible_page, visible_text

_KNOWN = re.compile(r"([a-z]{1,20}):([0-9a-f]{12})")
MOST_KNOWN = 1000
"""Maximum characters of `?known=` that are read."""


@dataclass(frozen=True, slots=True)
class Card:
    """One part of a live page: its HTML, and a digest of it without the CSRF token."""

    html: SafeString
    version: str


@dataclass(frozen=True, slots=True)
class LivePage:
    """Present state of a live page.

    `announcement` is read by screen readers when it changes. `settled`: the state is final, and the page stops polling.
    `pause` is the interval between polls in seconds.
    """

    cards: Mapping[str, Card]
    title: str
    announcement: str
    settled: bool
    pause: float


def render_cards(request: HttpRequest, templates: Mapping[str, str], context: Mapping[str, Any]) -> dict[str, Card]:
    """Render each of `templates` ({name of the card: template}) with `context`."""
    token = get_token(request)
    values = {**context, "csrf_token": token}
    cards = {}
    for name, template in templates.items():
        html = visible_page(render_to_string(template, values, request=request).strip())
        version = hashlib.sha256(html.replace(token, "").encode()).hexdigest()[:12]
        cards[name] = Card(mark_safe(html), version)  # noqa: S308  (a rendered template: it is escaped)
    return cards


def live_answer(request: HttpRequest, page: LivePage) -> JsonResponse:
    """Respond to a poll with the cards that differ from those that `?known=name:version,…` names."""
    known = dict(_KNOWN.findall(request.GET.get("known", "")[:MOST_KNOWN]))
    changed = {
        name: {"html": card.html, "version": card.version}
        for name, card in page.cards.items()
        if known.get(name) != card.version
    }
    body = {
        "cards": changed,
        "title": visible_text(page.title),
        "announcement": visible_text(page.announcement),
        "settled": page.settled,
        "pause": page.pause,
    }
    return JsonResponse(body, headers={"Cache-Control": "no-store"})
