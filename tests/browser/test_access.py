"""Invitations and a forgotten password in a real browser: what browsers send of their own is part of these pages' checks."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from django.core import mail
from django.core.cache import caches
from django.db import connection
from playwright.sync_api import Page, expect

from apps.access.services import invite
from apps.access.services.mail import send_due
from apps.core import clock
from apps.tenancy.scope import Scope
from tests.browser.pages import follow, started
from tests.support import PASSWORD, Tenant

pytestmark = [pytest.mark.alone, pytest.mark.browser, pytest.mark.timeout(240)]
NEW = "a password that is new"


def _send_mail() -> str:
    """Send what is due (elsewhere: the browser's driver keeps Django out of this thread) and give the path of the last link."""

    def send() -> None:
        try:
            send_due(clock.now())
        finally:
            connection.close()

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    found = re.search(r"https?://[^/\s]+(/auth/\S+)", str(mail.outbox[-1].body))
    assert found
    return found.group(1)


def _fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), page.url


def test_a_person_joins_signs_in_and_resets_the_password(
    transactional_db: None, tenant: Tenant, live_server: Any, settings: Any
) -> None:
    caches["limits"].clear()
    actor, scope = tenant.principal("alice"), Scope(tenant.organization)
    new, known = (
        invite(actor=actor, scope=scope, email=f"{name}@example.com", role="operator").token.reveal()
        for name in ("dora", "charlie")
    )
    with started() as browser:
        page = browser.new_context(viewport={"width": 360, "height": 700}).new_page()
        refused: list[str] = []
        page.on("response", lambda answer: refused.append(answer.url) if answer.status == 403 else None)

        page.goto(f"{live_server.url}/auth/invitations/{new}")
        _fits(page)
        page.get_by_label("Name").fill("Dora")
        page.get_by_label("Password").fill(PASSWORD)
        follow(page.get_by_role("button", name="Accept the invitation"))
        expect(page).to_have_url(f"{live_server.url}/admin/")

        page.goto(f"{live_server.url}/auth/invitations/{known}")
        _fits(page)
        follow(page.get_by_role("button", name="Sign out"))
        page.goto(f"{live_server.url}/auth/invitations/{known}")
        follow(page.get_by_role("link", name="Sign in and join"))
        page.get_by_label("Email").fill("charlie@example.com")
        page.get_by_label("Password").fill(PASSWORD)
        follow(page.get_by_role("button", name="Log in"))
        follow(page.get_by_role("button", name="Join"))
        expect(page.get_by_text("You joined Acme.")).to_be_visible()

        page.context.clear_cookies()
        page.goto(f"{live_server.url}/admin/login/")
        follow(page.get_by_role("link", name="Forgotten"))
        _fits(page)
        page.get_by_label("E-mail address").fill("charlie@example.com")
        follow(page.get_by_role("button", name="Mail me a link"))
        expect(page.get_by_role("status")).to_contain_text("If this address has an account")
        page.goto(live_server.url + _send_mail())
        _fits(page)
        page.get_by_label("New password").fill(NEW)
        follow(page.get_by_role("button", name="Set the password"))
        page.get_by_label("Email").fill("charlie@example.com")
        page.get_by_label("Password").fill(NEW)
        follow(page.get_by_role("button", name="Log in"))
        expect(page).to_have_url(f"{live_server.url}/admin/")
        assert refused == []
