"""Django's WSGI application behind the trusted proxies. `byteor.asgi` is the served application."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402  (needs the settings named)

from apps.agents.heartbeat_cache import open_heartbeat_cache  # noqa: E402  (needs the applications loaded)
from apps.core.db import bound_statements  # noqa: E402  (keeps the imports together)
from byteor.server.proxies import behind_proxies  # noqa: E402  (keeps the imports together)
from byteor.server.requests import Handler  # noqa: E402  (keeps the imports together)

application = behind_proxies(Handler(), settings.BYTEOR_TRUSTED_PROXIES)

bound_statements()
open_heartbeat_cache()
