"""An S3 server behind a fault proxy, and a control plane that stores there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import Missing, without
from tests.storage.proxy import FaultProxy, s3_behind_a_proxy


@pytest.fixture(scope="session")
def proxy() -> Iterator[FaultProxy]:
    try:
        with s3_behind_a_proxy() as made:
            yield made
    except Missing as missing:
        without(missing)
