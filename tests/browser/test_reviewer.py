"""A reviewer in a real browser against the real product: the demo, as `make up` starts it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import follow, sign_in
from tests.flows.world import World, running, until
from tests.lines import json_lines

pytestmark = [pytest.mark.alone, pytest.mark.browser, pytest.mark.timeout(480)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A demo in which one deployment waits for approval: until the second test below approves it."""
    with running(tmp_path_factory.mktemp("reviewer"), "--demo") as world:
        yield world


@pytest.fixture
def another_demo(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path, "--demo") as world:
        yield world


def open_waiting(page: Page, world: World) -> None:
    def waits() -> bool:
        page.goto(f"{world.url}/admin/")
        return page.locator("a.waiting").count() == 1

    until(waits, 60)
    follow(page.locator("a.waiting"))


def test_who_may_not_decide_sees_why_and_no_button(browser: Browser, demo: World):
    for who, words in (("oleg", "another user must decide"), ("vera", "operator role")):
        page = browser.new_context().new_page()
        sign_in(page, demo, who)

        def listed(page: Page = page) -> bool:
            # the demo's first deployment waits for a moment, too, before the demo approves it
            for status in ("approved", "pending"):
                page.goto(f"{demo.url}/admin/approvals/approval/?status__exact={status}")
                if page.locator("#result_list tbody th a").count() != 1:
                    return False
            return True

        until(listed, 60)
        follow(page.locator("#result_list tbody th a"))
        expect(page.get_by_text(words)).to_be_visible()
        assert page.get_by_role("button", name="Approve").count() == 0


def test_sign_in_see_what_changes_approve_and_watch_it_become_active(browser: Browser, demo: World):
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("request", lambda r: None if r.url.startswith((demo.url, "data:")) else trouble.append(r.url))
    sign_in(page, demo, "rita")
    open_waiting(page, demo)
    expect(page.locator(".diff-added").first).to_contain_text("customer.")
    expect(page.locator("svg.graph, .graph-frame svg")).to_be_visible()
    if picture := os.environ.get("BYTEOR_PICTURE"):
        page.screenshot(path=picture, full_page=True)
    navigations: list[str] = []
    follow(page.get_by_role("button", name="Approve"))
    page.on("framenavigated", lambda frame: navigations.append(frame.url))
    expect(page.locator("[data-live-deployment]")).to_have_text("active")
    expect(page.locator("[data-live-target]").first).to_have_text("activated")
    assert navigations == []
    assert trouble == []
    data = Path(demo.environment["BYTEOR_CLOUD_DATA_DIR"]) / "demo" / "agents"

    def redacted() -> bool:
        rows = [lines[-1] for p in data.glob("*/data/redacted.jsonl") if (lines := json_lines(p))]
        return len(rows) == 3 and all(
            len(row["customer"]["email"]) == 64 and "address" not in row["customer"] for row in rows
        )

    until(redacted)


def test_without_javascript_the_decision_works_and_a_reload_shows_the_state(browser: Browser, another_demo: World):
    page = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844}).new_page()
    sign_in(page, another_demo, "rita")
    open_waiting(page, another_demo)
    follow(page.get_by_role("button", name="Deny"))
    expect(page.locator("[data-code=comment_required]")).to_be_visible()
    page.fill("[name=comment]", "Fine by me.")
    follow(page.get_by_role("button", name="Approve"))

    def active() -> bool:
        page.goto(page.url)
        return page.locator("[data-live-deployment]").inner_text() == "active"

    until(active, 60)
