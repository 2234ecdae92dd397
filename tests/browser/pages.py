"""Going from page to page in a real browser: start it, sign in, click what leads elsewhere."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.flows.world import World
from tests.services import Missing, chromium, without

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

expect.set_options(timeout=60_000)  # a busy machine takes longer than the five seconds that are usual


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A Chromium; skips the test where none is installed."""
    try:
        path = chromium()
    except Missing as missing:
        without(missing)
    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield made
        made.close()


def follow(what: Locator) -> None:
    """Click what leads to another page, and wait until that page is loaded.

    A click by itself returns when the next page begins: its document can still be empty, its address the former one.
    """
    with what.page.expect_navigation(wait_until="load"):
        what.click()


def accounts(world: World) -> dict[str, dict[str, str]]:
    path = Path(world.environment["BYTEOR_CLOUD_DATA_DIR"]) / "demo" / "accounts.json"
    assert path.stat().st_mode & 0o777 == 0o600
    return {a["email"].split("@")[0]: a for a in json.loads(path.read_text())}


def sign_in(page: Page, world: World, who: str) -> None:
    account = accounts(world)[who]
    page.goto(f"{world.url}/")
    page.fill("[name=username]", account["email"])
    page.fill("[name=password]", account["password"])
    follow(page.locator("[type=submit]"))
