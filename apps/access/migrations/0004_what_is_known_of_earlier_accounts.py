"""Fill in what the new columns mean for people and members from before."""

import datetime as dt

from django.db import migrations


def fill(apps, schema_editor):
    """Each member's present role is a grant since the membership was made. Platform staff, and accounts that a command made (its
    audit event was written with the account), are proved; others were made by a link that was shown to their inviter."""
    User = apps.get_model("access", "User")
    Membership = apps.get_model("access", "Membership")
    RoleGrant = apps.get_model("access", "RoleGrant")
    AuditEvent = apps.get_model("audit", "AuditEvent")
    by_command = {}
    for target, at in AuditEvent.objects.filter(action="member.created").order_by("created_at").values_list(
        "target", "created_at"
    ):
        by_command.setdefault(target, at)
    for user in User.objects.iterator():
        made = by_command.get(f"person:{user.pk}")
        if user.is_superuser or (made is not None and abs(made - user.created_at) < dt.timedelta(minutes=1)):
            user.address_proved_at = user.created_at
        else:
            first = Membership.objects.filter(user=user).order_by("created_at", "pk").first()
            user.origin_organization_id = first.organization_id if first is not None else None
        user.save(update_fields=["address_proved_at", "origin_organization_id"])
    for row in Membership.objects.filter(status="active", user__isnull=False).iterator():
        RoleGrant.objects.create(
            organization_id=row.organization_id,
            project_id=row.project_id,
            user_id=row.user_id,
            role=row.role,
            granted_by=row.invited_by,
            granted_at=row.created_at,
        )


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_role_grants_mailed_links_and_resets"),
        ("audit", "0001_initial"),
    ]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop, elidable=True)]
