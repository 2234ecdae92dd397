"""Which URLs an op or an adapter may name."""

from __future__ import annotations

from urllib.parse import urlsplit

MAX_URL = 2048


def url_problem(url: str) -> str | None:
    """Why `url` is not an http(s) URL without userinfo of at most 2,048 characters; None when it is one."""
    if len(url) > MAX_URL:
        return f"The URL has more than {MAX_URL} characters."
    if any(not "!" <= char <= "~" for char in url) or "\\" in url:
        return "The URL has characters that must be percent-encoded."
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "The URL is malformed."
    if parts.scheme not in ("http", "https"):
        return "The URL does not begin with http:// or https://."
    if "@" in parts.netloc:
        return "The URL holds a user name or password."
    if not host or port == 0:
        return "The URL names no host."
    return None
