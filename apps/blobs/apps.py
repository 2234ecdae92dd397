"""Content-addressed files."""

from django.apps import AppConfig


class BlobsConfig(AppConfig):
    """Stored files and the purge of what was deleted."""

    name = "apps.blobs"
    label = "blobs"

    def ready(self) -> None:
        from apps.blobs import jobs, purge
        from apps.blobs.store import check_store
        from apps.core.readiness import register_check
        from apps.tenancy import registry

        registry.set_purger(purge.purge_now_or_later)
        register_check("storage", check_store)
        jobs.register()
