"""A reviewer in a real browser against the real product: the demo, as `make up` starts it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.flows.world import World, running, until
from tests.services import Missing, chromium, without

pytestmark = [pytest.mark.alone, pytest.mark.browser, pytest.mark.timeout(240)]

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        path = chromium()
    except Missing as missing:
        without(missing)
    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path, "--demo") as world:
        yield world


def accounts(world: World) -> dict[str, dict[str, str]]:
    path = Path(world.environment["BYTEOR_CLOUD_DATA_DIR"]) / "demo" / "accounts.json"
    assert path.stat().st_mode & 0o777 == 0o600
    return {a["email"].split("@")[0]: a for a in json.loads(path.read_text())}


def sign_in(page: Page, world: World, who: str) -> None:
    account = accounts(world)[who]
    page.goto(f"{world.url}/")
    page.fill("[name=username]", account["email"])
    page.fill("[name=password]", account["password"])
    page.click("[type=submit]")


def open_waiting(page: Page, world: World) -> None:
    def waits() -> bool:
        page.goto(f"{world.url}/admin/")
        return page.locator("a.waiting").count() == 1

    until(waits, 60)
    page.click("a.waiting")


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
    page.get_by_role("button", name="Approve").click()
    page.wait_for_load_state()
    page.on("framenavigated", lambda frame: navigations.append(frame.url))
    expect(page.locator("[data-live-deployment]")).to_have_text("active", timeout=20_000)
    expect(page.locator("[data-live-target]").first).to_have_text("activated")
    assert navigations == []
    assert trouble == []
    data = Path(demo.environment["BYTEOR_CLOUD_DATA_DIR"]) / "demo" / "agents"

    def redacted() -> bool:
        rows = [json.loads(p.read_text().splitlines()[-1]) for p in data.glob("*/data/redacted.jsonl")]
        return len(rows) == 3 and all(
            len(row["customer"]["email"]) == 64 and "address" not in row["customer"] for row in rows
        )

    until(redacted, 20)


def test_without_javascript_the_decision_works_and_a_reload_shows_the_state(browser: Browser, demo: World):
    page = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844}).new_page()
    sign_in(page, demo, "rita")
    open_waiting(page, demo)
    page.get_by_role("button", name="Deny").click()
    expect(page.locator("[data-code=comment_required]")).to_be_visible()
    page.fill("[name=comment]", "Fine by me.")
    page.get_by_role("button", name="Approve").click()

    def active() -> bool:
        page.reload()
        return page.locator("[data-live-deployment]").inner_text() == "active"

    until(active, 30)


def test_who_may_not_decide_sees_why_and_no_button(browser: Browser, demo: World):
    for who, words in (("oleg", "Somebody else decides"), ("vera", "operator role")):
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
        page.click("#result_list tbody th a")
        expect(page.get_by_text(words)).to_be_visible()
        assert page.get_by_role("button", name="Approve").count() == 0
