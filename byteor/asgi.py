"""The ASGI application that `manage.py run_web` serves."""

import os

from apps.core.processes import die_with_parent

if _server := os.environ.get("BYTEOR_SERVER_PID"):
    die_with_parent(int(_server))

from byteor.wsgi import application as _wsgi

# isort: split
from django.conf import settings

from apps.agents.heartbeat_cache import flush
from apps.core import readiness
from apps.limits import windows
from byteor.middleware.requests import body_refusal
from byteor.server.bridge import Environ
from byteor.server.front import Front
from byteor.server.limits import Limits
from byteor.server.proxies import TrustedProxies


def client_address(environ: Environ) -> str:
    """The client's address for limits, also behind a trusted proxy."""
    forwarded = [environ["HTTP_X_FORWARDED_FOR"]] if "HTTP_X_FORWARDED_FOR" in environ else []
    proxies: TrustedProxies = settings.BYTEOR_TRUSTED_PROXIES
    return proxies.origin(environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], forwarded).address


def _stop() -> None:
    """Flush buffered heartbeats (later ones are written directly), and return the leased slots of rate windows."""
    flush.end()
    windows.give_back_leases()


readiness.watch()
application = Front(
    _wsgi,
    refused=lambda environ: body_refusal(environ) is not None,
    directory=settings.BYTEOR_DATA_DIR,
    limits=Limits.of_this_process(),
    address_of=client_address,
    at_stop=_stop,
)
