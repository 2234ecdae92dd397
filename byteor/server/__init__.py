"""The HTTP server in front of the WSGI application.

| module | what it does |
|---|---|
| `run` | starts granian (`manage.py run_web`) with `byteor.asgi` |
| `front` | the ASGI application: one request from its head to the end of its answer |
| `bodies` | request bodies, read under a deadline |
| `bridge` | ASGI to WSGI and back |
| `waiting` | long polls on the event loop (requested by a view: `apps.core.waits`) |
| `connections` | ends connections that are silent, unread, or too many |
| `limits` | every bound in one place |

It contains no domain logic.
"""
