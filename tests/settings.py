"""The settings of the tests: the product's own, on a temporary data directory unless BYTEOR_CLOUD_DATA_DIR names one.

Without it, a test run would be on the data of `make up`.
"""

import os
import tempfile

if "BYTEOR_CLOUD_DATA_DIR" not in os.environ:
    # removed at the end of the process that made it; its test workers inherit the variable
    _data = tempfile.TemporaryDirectory(prefix="byteor-test-", ignore_cleanup_errors=True)
    os.environ["BYTEOR_CLOUD_DATA_DIR"] = _data.name

_worker = os.environ.get("PYTEST_XDIST_WORKER")
if _worker and os.path.basename(os.environ["BYTEOR_CLOUD_DATA_DIR"]) != _worker:
    # each test process sweeps the files that its own database does not name; processes that it starts inherit its folder
    os.environ["BYTEOR_CLOUD_DATA_DIR"] = os.path.join(os.environ["BYTEOR_CLOUD_DATA_DIR"], _worker)
    os.makedirs(os.environ["BYTEOR_CLOUD_DATA_DIR"], exist_ok=True)

from byteor.settings import *  # noqa: E402, F403
