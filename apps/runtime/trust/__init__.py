"""Signatures and what is accepted because of them: DSSE envelopes, key sets, directives, approval credentials.

Pure Python over `cryptography`; the same code signs in the control plane and verifies on the hosts. Standards: DSSE v1
(pre-authentication encoding and JSON envelope), Ed25519 (RFC 8032), JSON canonicalization (RFC 8785). All times
in signed documents are integer Unix milliseconds.
"""

from apps.runtime.trust.credentials import (
    CredentialClaims,
    decode_credential,
    mint_credential,
    targets_sha256,
    verify_credential,
)
from apps.runtime.trust.directives import (
    DIRECTIVE_LIFE_MS,
    PAYLOAD_DIRECTIVE,
    Directive,
    sign_directive,
    verify_directive,
)
from apps.runtime.trust.envelopes import (
    MAX_ENVELOPE_BYTES,
    MAX_SIGNATURES,
    envelope_payload,
    load_canonical,
    open_envelope,
    opened,
    pae,
    sign_envelope,
    unique_members,
)
from apps.runtime.trust.keys import (
    CLOCK_SKEW_MS,
    KeySet,
    Signer,
    TrustedKey,
    TrustError,
    generate_private_key,
    kid_of,
    public_key,
    public_key_pem,
)
from apps.runtime.trust.keysets import MAX_KEYS, PAYLOAD_KEYSET, accept_keyset, make_keyset_payload, parse_keyset
from apps.runtime.trust.releases import (
    MAX_RELEASE_BYTES,
    PAYLOAD_RELEASE,
    RELEASE_LIFE_MS,
    AgentRelease,
    sign_release,
    verify_release,
    version_tuple,
)

PAYLOAD_MANIFEST = "application/vnd.byteor.manifest.v1+json"

__all__ = [
    "CLOCK_SKEW_MS",
    "DIRECTIVE_LIFE_MS",
    "MAX_ENVELOPE_BYTES",
    "MAX_KEYS",
    "MAX_RELEASE_BYTES",
    "MAX_SIGNATURES",
    "PAYLOAD_DIRECTIVE",
    "PAYLOAD_KEYSET",
    "PAYLOAD_MANIFEST",
    "PAYLOAD_RELEASE",
    "RELEASE_LIFE_MS",
    "AgentRelease",
    "CredentialClaims",
    "Directive",
    "KeySet",
    "Signer",
    "TrustError",
    "TrustedKey",
    "accept_keyset",
    "decode_credential",
    "envelope_payload",
    "generate_private_key",
    "kid_of",
    "load_canonical",
    "make_keyset_payload",
    "mint_credential",
    "open_envelope",
    "opened",
    "pae",
    "parse_keyset",
    "public_key",
    "public_key_pem",
    "sign_directive",
    "sign_envelope",
    "sign_release",
    "targets_sha256",
    "unique_members",
    "verify_credential",
    "verify_directive",
    "verify_release",
    "version_tuple",
]
