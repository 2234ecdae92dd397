"""Keys at rest, the first key set, and who may read them."""

import pytest

from apps.access.roles import Role
from apps.runtime import trust
from apps.signing import services
from apps.signing.models import SigningKey
from apps.signing.vault import VaultError
from tests.support import caller_for, give_role, make_person

pytestmark = pytest.mark.django_db


def test_an_organization_is_born_with_a_key_and_a_set_that_signs_itself(tenant):
    answer = services.key_set(tenant.organization.pk)
    keys = trust.accept_keyset(None, answer["envelopes"])
    assert (keys.version, keys.org_id) == (1, str(tenant.organization.pk))
    signer = services.active_signer(tenant.organization.pk)
    assert list(keys.by_kid()) == [signer.kid]
    assert services.key_set(tenant.organization.pk, after=1)["envelopes"] == []


def test_private_keys_rest_encrypted_bound_to_their_row(tenant, settings):
    row = SigningKey.objects.get(organization=tenant.organization)
    private = services.active_signer(tenant.organization.pk).private_raw
    assert private not in bytes(row.private_box)
    assert "private_raw" not in repr(services.active_signer(tenant.organization.pk))
    other = SigningKey.objects.get(organization=tenant.other_organization)
    SigningKey.objects.filter(pk=row.pk).update(private_box=other.private_box)
    with pytest.raises(VaultError) as refused:
        services.active_signer(tenant.organization.pk)
    assert (refused.value.status, refused.value.code) == (503, "private_key_damaged")
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = [("another", b"x" * 32)]
    with pytest.raises(VaultError) as refused:
        services.active_signer(tenant.other_organization.pk)
    assert (refused.value.status, refused.value.code) == (503, "key_encryption_key_missing")


def test_a_second_key_encryption_key_in_front_still_opens_the_old_rows(tenant, settings):
    settings.BYTEOR_KEY_ENCRYPTION_KEYS = [("new", b"n" * 32), *settings.BYTEOR_KEY_ENCRYPTION_KEYS]
    assert services.active_signer(tenant.organization.pk)


def test_members_read_the_public_part_and_outsiders_nothing(tenant):
    path = f"/orgs/{tenant.organization.pk}/signing-keys"
    guest = make_person("guest")
    give_role(guest, Role.VIEWER, tenant.organization, tenant.project)
    for caller in (tenant.caller("vera"), caller_for(guest)):
        row = caller.get(path).json()["results"][0]
        assert row["public_key_pem"].startswith("-----BEGIN PUBLIC KEY-----")
        assert not any("private" in name for name in row)
    assert tenant.caller("charlie").get(path).status_code == 404
