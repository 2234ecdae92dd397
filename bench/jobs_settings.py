"""The product's settings with one handler more: a job that only leaves a mark."""

from byteor.settings import *  # noqa: F403
from byteor.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "bench.jobs_handler.BenchConfig"]
