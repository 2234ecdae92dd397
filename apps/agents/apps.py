"""Agents: enrollment, keys, heartbeats, directives."""

from django.apps import AppConfig


class AgentsConfig(AppConfig):
    """Agents: the programs on the hosts."""

    name = "apps.agents"

    def ready(self) -> None:
        from apps.agents.models import Agent
        from apps.agents.selectors import agents_note
        from apps.agents.services import announce_keys, announce_scope, check_upgrade_percent
        from apps.agents.services.enrollment import delete_ended_tokens
        from apps.core.metrics import register_gauge
        from apps.jobs.registry import register_chore
        from apps.signing import registry as signing
        from apps.tenancy import registry as tenancy

        tenancy.on_deleted(announce_scope)
        tenancy.settings_check(check_upgrade_percent)
        tenancy.deletion_note(agents_note)
        signing.on_keys_changed(announce_keys)
        register_chore("ended_enrollment_tokens", every_seconds=3600, run=delete_ended_tokens)
        register_gauge(
            "byteor_agents", "Enrolled agents", lambda: {(): float(Agent.objects.filter(revoked_at=None).count())}
        )
