"""The HTTP server in front of the WSGI application.

| module | what it does |
|---|---|
| `run` | starts granian (`manage.py run_web`) with `byteor.asgi` |
| `front` | the ASGI application: one request from its head to the end of its answer |
| `bodies` | request bodies, read under a deadline |
| `bridge` | ASGI to WSGI and back |
| `waiting` | long polls on the event loop (requested by a view: `apps.core.waits`) |
| `connections` | ends connections that are silent, unread, or too many |
| `proxies` | the client's address and scheme behind trusted proxies |
| `requests` | Django's request and handler, for headers in any charset |
| `limits` | the bounds of one process (the time for a head is in `run`, the size of a body in the settings) |

It contains no domain logic.
"""
