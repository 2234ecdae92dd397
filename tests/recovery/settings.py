"""The product's settings with handlers that misbehave on demand."""

from byteor.settings import *  # noqa: F403
from byteor.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.recovery.handlers.RecoveryConfig"]
