"""The WSGI application."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "byteor.settings")
if os.environ.get("BYTEOR_DIE_WITH_PARENT"):
    # set by `manage.py up`: the server's own worker processes end with the server, however that ends
    from apps.core.processes import die_with_parent

    die_with_parent()
application = get_wsgi_application()

from apps.agents.lane import open_lane  # noqa: E402  (needs the applications loaded)
from apps.agents.shutdown import end_waits_at_shutdown  # noqa: E402  (needs the applications loaded)

end_waits_at_shutdown()
open_lane()
