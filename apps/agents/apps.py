"""Agents: enrollment, keys, heartbeats, directives."""

from django.apps import AppConfig


class AgentsConfig(AppConfig):
    """The programs on the hosts, as the control plane sees them."""

    name = "apps.agents"
    label = "agents"

    def ready(self) -> None:
        from apps.agents.services import announce_keys, announce_scope
        from apps.signing import registry as signing
        from apps.tenancy import registry as tenancy

        tenancy.on_deleted(announce_scope)
        signing.on_keys_changed(announce_keys)
