"""Organizations' signing keys."""

from django.apps import AppConfig


class SigningConfig(AppConfig):
    """Key sets."""

    name = "apps.signing"

    def ready(self) -> None:
        from apps.core import readiness
        from apps.signing.checks import encryption_keys
        from apps.signing.services import make_first_key
        from apps.tenancy import registry

        registry.on_created("organization", make_first_key)
        both = (readiness.WEB, readiness.WORKER)
        readiness.register_check("key_encryption_keys", encryption_keys, needed_by=both)
