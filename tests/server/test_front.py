"""What the front does with requests, against small applications in this process."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from byteor.server.bridge import Environ
from byteor.server.limits import Limits
from byteor.server.proxies import TrustedProxies, set_origin
from tests.served import Exchange, Served, serving

Application = Callable[[Environ, Callable[..., Any]], Any]


def echo(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """Answers with the body's length and first byte."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d %s" % (len(body), body[:1])]


def begin(server: Served, length: int, piece: bytes = b"x", address: str = "192.0.2.1") -> Exchange:
    """A request whose body of `length` has begun with `piece`."""
    exchange = server.begin("POST", "/api/v1/x", body=None, headers={"content-length": str(length)}, address=address)
    exchange.send(piece, more=True)
    return exchange


def test_a_body_that_stops_coming_is_408_and_its_connection_is_closed() -> None:
    with serving(Limits(body_idle_seconds=0.3), echo) as server:
        answer = begin(server, 500).result()
    assert answer.status == 408
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "request_timeout"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_a_body_that_trickles_is_408_when_its_whole_time_is_over() -> None:
    with serving(Limits(body_idle_seconds=5, body_seconds=0.5), echo) as server:
        began = time.monotonic()
        exchange = begin(server, 500)
        while exchange.done is not None and not exchange.done.done() and time.monotonic() - began < 30:
            exchange.send(b"x", more=True)
            time.sleep(0.05)
        assert exchange.result().status == 408
        assert time.monotonic() - began >= 0.5


def test_a_large_body_has_more_time_for_its_bytes() -> None:
    with serving(Limits(body_seconds=0.1, body_bytes_per_second=100), echo) as server:
        exchange = begin(server, 2000, b"x" * 1000)
        time.sleep(0.5)
        exchange.send(b"x" * 1000, more=False)
        assert exchange.result().body == b"2000 x"


def test_over_its_bound_the_oldest_incomplete_body_of_an_address_goes_and_one_that_is_complete_is_served() -> None:
    with serving(Limits(bodies_open_per_address=3, body_idle_seconds=60), echo) as server:
        elsewhere = begin(server, 500, address="192.0.2.2")
        slow = [begin(server, 500) for _ in range(3)]
        server.until(lambda: server.front.open_bodies == 4)
        assert server.call("POST", "/", body=b"at once").body == b"7 a"
        whole = server.begin("POST", "/", body=b"at once", address="192.0.2.1").result()
        assert whole.body == b"7 a"
        assert slow[0].result().status == 408
        for exchange in (*slow[1:], elsewhere):
            exchange.send(b"y" * 499, more=False)
            assert exchange.result().body == b"500 x"
        assert server.front.open_bodies == 0


def test_over_the_bound_of_all_the_address_with_most_gives_way() -> None:
    with serving(Limits(bodies_open=3, body_idle_seconds=60), echo) as server:
        few, many = begin(server, 2, address="192.0.2.2"), [begin(server, 2) for _ in range(2)]
        server.until(lambda: server.front.open_bodies == 3)
        last = begin(server, 2, address="192.0.2.3")
        assert many[0].result().status == 408
        for exchange in (few, many[1], last):
            exchange.send(b"y", more=False)
            assert exchange.result().body == b"2 x"


def test_long_bodies_lie_in_files_and_503_when_those_are_full() -> None:
    limits = Limits(body_in_memory=1000, bodies_in_files=9000)
    with serving(limits, echo) as server:
        first = begin(server, 6000, b"a" * 3000)
        server.until(lambda: server.front.bytes_in_files == 6000)
        refused = begin(server, 6000, b"b" * 3000).result()
        assert (refused.status, refused.json()["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        first.send(b"c" * 3000, more=False)
        assert first.result().body == b"6000 a"
        server.until(lambda: server.front.bytes_in_files == 0)
        assert server.call("POST", "/", body=b"d" * 6000).body == b"6000 d"


@pytest.mark.parametrize("trouble", ["no file can be opened", "the disk is full"])
def test_bodies_that_could_not_be_kept_take_no_space_from_later_ones(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def opened(**given: Any) -> Any:
        if trouble == "the disk is full":
            return open("/dev/full", "w+b")
        raise OSError(errno.EMFILE, "Too many open files")

    limits = Limits(body_in_memory=1000, bodies_in_files=9000)
    with serving(limits, echo) as server:
        with monkeypatch.context() as patch:
            patch.setattr("byteor.server.bodies.tempfile.TemporaryFile", opened)
            for _ in range(3):
                exchange = begin(server, 6000, b"a" * 3000)
                exchange.send(b"b" * 3000, more=False)
                assert exchange.result().status == (507 if trouble == "the disk is full" else 500)
        assert server.front.bytes_in_files == 0
        assert server.call("POST", "/", body=b"d" * 6000).body == b"6000 d"


def test_a_client_that_goes_in_the_middle_of_its_body_is_forgotten() -> None:
    with serving(Limits(body_in_memory=1000), echo) as server:
        exchange = begin(server, 6000, b"a" * 3000)
        server.until(lambda: server.front.bytes_in_files == 6000)
        exchange.hang_up()
        assert exchange.result().status == 0
        assert (server.front.bytes_in_files, server.front.open_bodies) == (0, 0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"transfer-encoding": "chunked"}, 411),
        ({"content-length": "5000000"}, 413),
        ({"content-length": "9" * 30}, 413),
        ({"content-length": "x"}, 411),
    ],
)
def test_a_body_that_is_refused_by_its_head_is_not_read(headers: dict[str, str], status: int) -> None:
    with serving() as server:
        answer = server.begin("POST", "/api/v1/orgs", body=None, headers=headers).result()
    assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_header_names_with_an_underscore_are_dropped_and_lines_of_one_name_are_joined() -> None:
    seen: list[Environ] = []

    def application(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        seen.append(environ)
        return echo(environ, start_response)

    with serving(application=application) as server:
        server.call("GET", "/caf%C3%A9%FF?q=%20", **{"x_forwarded_proto": "https", "x-forwarded-proto": "http"})
    (environ,) = seen
    assert environ["HTTP_X_FORWARDED_PROTO"] == "http"
    assert environ["PATH_INFO"].encode("latin-1") == b"/caf\xc3\xa9\xff"
    assert environ["QUERY_STRING"] == "q=%20"
    set_origin(environ, TrustedProxies.parse("127.0.0.1"))
    assert environ["wsgi.url_scheme"] == "http"


def test_a_reader_that_stops_holds_no_thread_and_its_answer_is_closed_when_it_goes() -> None:
    closed = threading.Event()

    class Pieces:
        def __iter__(self) -> Iterator[bytes]:
            return (b"x" * 300_000 for _ in range(50))

        def close(self) -> None:
            closed.set()

    def application(environ: Environ, start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] != "/large":
            return echo(environ, start_response)
        start_response("200 OK", [("Content-Length", "15000000")])
        return Pieces()

    with serving(Limits(threads=1), application) as server:
        unread = [server.begin("GET", "/large", reading=False) for _ in range(5)]
        server.until(lambda: all(exchange.answer.body for exchange in unread))
        assert server.call("GET", "/").status == 200
        assert not closed.is_set()
        unread[0].hang_up()
        assert closed.wait(30)
        for exchange in unread[1:]:
            exchange.reading.set()
            assert len(exchange.result().body) == 15_000_000


def test_more_than_the_queue_takes_is_503_with_when_to_come_again() -> None:
    gate = threading.Event()

    def application(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        gate.wait(60)
        return echo(environ, start_response)

    with serving(Limits(threads=1, queue=2), application) as server:
        taken = [server.begin("GET", "/api/v1/x") for _ in range(3)]
        away = server.call("GET", "/api/v1/x")
        assert (away.status, away.json()["code"], away.headers["retry-after"]) == (503, "overloaded", "1")
        gate.set()
        assert [exchange.result().status for exchange in taken] == [200] * 3


def test_an_application_that_breaks_is_a_500_without_details() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        raise RuntimeError("a secret")

    with serving(application=application) as server:
        answer = server.call("GET", "/api/v1/x")
    assert (answer.status, answer.json()["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
