"""Forwarding headers of proxies, which are used only when the peer is a trusted proxy.

Pure Python without Django: the server's front and the WSGI application both use it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDED = frozenset(
    {
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-forwarded-protocol",
        "x-forwarded-scheme",
        "x-forwarded-server",
        "x-forwarded-ssl",
        "x-real-ip",
    }
)
"""Names of forwarding headers in lower case. They are not passed on to the application."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from: the client's `address` in canonical text, and `scheme`, `http` or `https`."""

    address: str
    scheme: str


def parse_address(text: str) -> Address | None:
    """Parse an IP address; None if `text` is not one.

    Accepts the forms that proxies write: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`, quotes around
    it. A zone (`%eth0`) is dropped; an IPv4 address mapped into IPv6 becomes the IPv4 address.
    """
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """Networks of the trusted proxies. Empty: no proxy is trusted."""

    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> TrustedProxies:
        """Read a comma-separated list of addresses and networks, or `none`.

        Raises ValueError with a sentence that names the part that is neither.
        """
        if text.strip().lower() == "none":
            return cls()
        networks: list[Network] = []
        for part in text.split(","):
            try:
                network = ipaddress.ip_network(part.strip())
            except ValueError:
                raise ValueError(
                    f"'{part.strip()}' is no address, no network such as 10.0.0.0/8, and not none"
                ) from None
            mapped = getattr(network.network_address, "ipv4_mapped", None)
            if mapped is not None and network.prefixlen >= 96:
                network = ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
            networks.append(network)
        return cls(tuple(networks))

    def trusts(self, address: Address | None) -> bool:
        """True if `address` is one of the proxies."""
        return address is not None and any(address in network for network in self.networks)

    def origin(
        self,
        peer: str,
        scheme: str,
        forwarded_for: Iterable[str] = (),
        forwarded_proto: Iterable[str] = (),
    ) -> Origin:
        """The origin of a request that arrived from `peer` over `scheme`.

        `forwarded_for` and `forwarded_proto` are the values of every `X-Forwarded-For` and `X-Forwarded-Proto` header line, in
        the order of the request. From a peer that is no proxy they are ignored. Otherwise the address is the right-most one
        that is no proxy's: what stands to its left was written by the client. Where every address is a proxy's it is the
        left-most; a word that is no address ends the search at the proxy that passed it on.

        The scheme is the word that belongs to that address when as many words as addresses arrived, else the last one; a word
        that is neither `http` nor `https` changes nothing.
        """
        address = parse_address(peer)
        if not self.trusts(address):
            return Origin(str(address) if address is not None else peer, scheme)
        hops = _words(forwarded_for)
        chosen = len(hops)
        for index in range(len(hops) - 1, -1, -1):
            hop = parse_address(hops[index])
            if hop is None:
                break
            address, chosen = hop, index
            if not self.trusts(hop):
                break
        words = _words(forwarded_proto)
        word = ""
        if words:
            word = words[chosen if len(words) == len(hops) and chosen < len(words) else -1].lower()
        return Origin(str(address), word if word in ("http", "https") else scheme)


def _words(lines: Iterable[str]) -> list[str]:
    """The comma-separated words of all `lines` of one header, in order, without empty ones (RFC 9110 §5.6.1)."""
    return [word for line in lines for part in line.split(",") if (word := part.strip())]


_CGI_FORWARDED = frozenset(f"HTTP_{name.upper().replace('-', '_')}" for name in FORWARDED)


def set_origin(environ: dict[str, Any], proxies: TrustedProxies) -> None:
    """Set `REMOTE_ADDR` and `wsgi.url_scheme` from the origin of a WSGI request, and remove the forwarding headers.

    A server must not keep only the last line of a repeated header or pass on header names with `_`. The front of
    `manage.py run_web` does neither.
    """
    origin = proxies.origin(
        str(environ.get("REMOTE_ADDR") or ""),
        str(environ.get("wsgi.url_scheme") or "http"),
        [environ["HTTP_X_FORWARDED_FOR"]] if "HTTP_X_FORWARDED_FOR" in environ else [],
        [environ["HTTP_X_FORWARDED_PROTO"]] if "HTTP_X_FORWARDED_PROTO" in environ else [],
    )
    environ["REMOTE_ADDR"], environ["wsgi.url_scheme"] = origin.address, origin.scheme
    for name in _CGI_FORWARDED.intersection(environ):
        del environ[name]


def behind_proxies(
    application: Callable[[dict[str, Any], Any], Iterable[bytes]], proxies: TrustedProxies
) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """`application` (WSGI) with each request's origin set by `set_origin`."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        set_origin(environ, proxies)
        return application(environ, start_response)

    return wrapped
