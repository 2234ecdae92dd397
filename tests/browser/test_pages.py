"""What the other tests here rely on: a page is looked at when it is there, however slowly it comes."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.pages import follow

pytestmark = [pytest.mark.alone, pytest.mark.browser, pytest.mark.timeout(240)]


class Slow(BaseHTTPRequestHandler):
    """A page with a link, and the page behind it, whose text comes long after its headers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.flush()
        if self.path == "/next":
            time.sleep(0.5)
        self.wfile.write(b"<!doctype html><title>A</title><a href=/next>Next</a><p>" + self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def slow() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_what_is_followed_is_there(browser: Browser, slow: str):
    page = browser.new_page()
    page.goto(slow)
    follow(page.get_by_role("link", name="Next"))
    assert page.url == f"{slow}/next"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.inner_text("p") == "/next"


def test_no_test_clicks_without_waiting_for_the_page():
    """Every click in these tests leads to another page, so all go through `follow`."""
    clicks = [
        f"{path.name}:{node.lineno}"
        for path in sorted(Path(__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "click"
    ]
    assert [name for name in clicks if not name.startswith("pages.py")] == []
    assert len(clicks) == 1
