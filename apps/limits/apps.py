"""Limits on repeated attempts."""

from django.apps import AppConfig

from apps.core import metrics


class LimitsConfig(AppConfig):
    """Rate windows of the API, and throttles on sign-in, failed authentication and enrollment."""

    name = "apps.limits"

    def ready(self) -> None:
        from apps.limits import windows

        metrics.register_gauge(
            "byteor_rate_calls_counted_alone",
            "Calls that this process counted alone because the store of rate windows did not answer",
            lambda: {(): float(windows.away_count())},
        )
