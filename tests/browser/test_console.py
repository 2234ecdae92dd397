"""The console in a real browser: pages that update by themselves, on any screen, and that are accessible."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.pages import follow, sign_in
from tests.flows.world import World, running, until

pytestmark = [pytest.mark.alone, pytest.mark.browser, pytest.mark.timeout(480)]

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
LISTS = (
    "approvals/approval",
    "deployments/deployment",
    "agents/agent",
    "pipelines/pipelinedraft",
    "jobs/job",
    "blobs/storedblob",
    "access/membership",
    "tenancy/environment",
    "signing/signingkey",
    "audit/auditevent",
)
MORE_LISTS = (
    "agents/enrollmenttoken",
    "pipelines/pipelineversion",
    "deployments/configbundle",
    "tenancy/organization",
    "tenancy/project",
    "access/personaltoken",
)
MODES = [(1280, "light"), (360, "dark")]
ALL_MODES = [*MODES, (1280, "dark"), (360, "light")]
FIRST = "#result_list tbody th a, #result_list tbody td a"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("console"), "--demo") as world:
        yield world


def opened(browser: Browser, world: World, who: str, **options: Any) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True, **options).new_page()
    sign_in(page, world, who)
    return page


def waiting_deployment(page: Page, world: World) -> str:
    """The page of the demo's deployment that waits for approval."""
    url = f"{world.url}/admin/deployments/deployment/?status__exact=pending_approval"

    def listed() -> bool:
        page.goto(url)
        return page.locator(FIRST).count() == 1

    until(listed, 60)
    follow(page.locator(FIRST).first)
    return page.url


def test_every_kind_of_page_is_accessible_and_fits_on_every_screen_in_light_and_dark(browser: Browser, demo: World):
    page = opened(browser, demo, "ada")
    waiting_deployment(page, demo)
    whole = os.environ.get("BYTEOR_AXE_ALL") == "1"
    urls = ["/admin/", "/admin/approvals/", "/admin/nothing-here/", "/admin/tenancy/environment/add/"]
    urls += ["/admin/access/membership/add/", "/admin/agents/enrollmenttoken/add/"]
    for label in (*LISTS, *(MORE_LISTS if whole else ())):
        urls.append(f"/admin/{label}/")
        page.goto(demo.url + urls[-1])
        if page.locator(FIRST).count():
            urls.append(str(page.locator(FIRST).first.get_attribute("href")).split("?")[0])
    one = next(url for url in urls if re.search(r"/environment/.*/change/", url))
    urls += [one.replace("/change/", "/delete/"), one.replace("/change/", "/history/")]
    key = next(url for url in urls if re.search(r"/signingkey/.*/change/", url))
    urls.append(key.replace("/change/", "/rotate/"))
    wrong = []
    for url in urls:
        page.goto(demo.url + url)
        page.add_style_tag(content="* { transition: none !important; }")
        page.evaluate(AXE)
        for width, scheme in ALL_MODES if whole else MODES:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 120)]))")
            wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            if found or wider > 1:
                wrong.append((url, width, scheme, wider, found))
    assert wrong == []


def test_a_page_left_open_offers_what_can_be_done_keeps_what_was_typed_and_is_announced(browser: Browser, demo: World):
    page = opened(browser, demo, "rita")
    waiting_deployment(page, demo)
    assert page.get_by_role("button", name="Roll back").count() == 0
    navigations: list[str] = []
    page.on("framenavigated", lambda frame: navigations.append(frame.url))
    polls: list[str] = []
    page.on("request", lambda request: polls.append(request.url) if "/state/" in request.url else None)

    # resting while it is hidden
    hide = "v => { Object.defineProperty(document, 'hidden', {value: v, configurable: true}); "
    page.evaluate(hide + "document.dispatchEvent(new Event('visibilitychange')); }", True)
    page.wait_for_timeout(500)
    before = len(polls)
    page.wait_for_timeout(4000)
    assert len(polls) == before
    page.evaluate(hide + "document.dispatchEvent(new Event('visibilitychange')); }", False)
    until(lambda: page.wait_for_timeout(50) is None and len(polls) > before)

    other = page.context.new_page()
    other.goto(page.url)
    follow(other.get_by_role("link", name="Open the approval"))
    follow(other.get_by_role("button", name="Approve").first)
    reason = page.get_by_label("Reason")
    expect(page.get_by_role("button", name=re.compile("Cancel|Roll back")).first).to_be_visible()
    reason.fill("half typed")
    expect(page.locator("[data-live-deployment]")).to_have_text("active")
    expect(page.get_by_role("button", name="Roll back")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(reason).to_have_value("half typed")
    expect(page.locator("[data-card=evidence]")).not_to_contain_text("not built yet")
    expect(page.locator("[data-card=votes]")).to_contain_text("1 of 1")
    expect(page.locator("[data-live-announcement]")).to_contain_text("active")
    expect(page).to_have_title(re.compile("^active"))
    assert navigations == []

    # nothing changes by itself any more: it stops, until the page is used
    page.wait_for_timeout(500)
    settled = len(polls)
    page.wait_for_timeout(5500)
    assert len(polls) == settled
    page.mouse.move(200, 200)
    page.mouse.move(220, 220)
    until(lambda: page.wait_for_timeout(50) is None and len(polls) > settled)


def test_a_page_that_can_not_update_shows_a_notice(browser: Browser, demo: World):
    page = opened(browser, demo, "vera")
    page.goto(f"{demo.url}/admin/deployments/deployment/")
    follow(page.locator(FIRST).first)
    notice = page.locator("[data-live-notice]")
    expect(notice).to_be_hidden()

    def use() -> None:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    page.context.set_offline(True)
    use()
    expect(notice).to_contain_text("No connection")
    page.context.set_offline(False)
    expect(notice).to_be_hidden()
    context: BrowserContext = page.context
    context.clear_cookies()
    use()
    expect(notice).to_contain_text("You are signed out")
    expect(notice.get_by_role("link", name="Sign in again")).to_have_attribute("href", re.compile("next=/admin/deploy"))


def test_without_javascript_a_page_asks_to_be_reloaded(browser: Browser, demo: World):
    page = opened(browser, demo, "vera", java_script_enabled=False)
    page.goto(f"{demo.url}/admin/deployments/deployment/")
    follow(page.locator(FIRST).first)
    # the driver's way of switching scripts off leaves the parser's alone: it does not show what is for pages without
    assert re.search(r"<noscript>.*Without JavaScript.*Reload it.*</noscript>", page.content(), re.S)
    page.goto(f"{demo.url}/admin/nothing-here/")
    expect(page.get_by_role("button", name="Log out")).to_be_visible()
