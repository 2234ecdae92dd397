"""Content-addressed files."""

from django.apps import AppConfig


class BlobsConfig(AppConfig):
    """Stored files, and the purge of deleted rows and files."""

    name = "apps.blobs"

    def ready(self) -> None:
        from apps.blobs import jobs, purge
        from apps.blobs.services import errors
        from apps.blobs.store import check_store
        from apps.core.metrics import register_gauge
        from apps.core.readiness import register_check
        from apps.tenancy import registry

        registry.set_purger(purge.purge_now_or_later)
        register_gauge(
            "byteor_storage_bad_files",
            "Stored files that this process found missing or corrupt",
            lambda: {(kind,): float(count) for kind, count in errors.items()},
            labels=("kind",),
        )
        register_check("storage", check_store, every_seconds=10)
        jobs.register()
