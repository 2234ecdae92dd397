"""What the files of a bundle's lanes must not be to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.runtime.agent.limits import ActivationError, Limits
from apps.runtime.agent.pipeline.folder import DataFolder, FileRefused


def check_files(
    ingress: Mapping[str, Mapping[str, Any]],
    egress: Mapping[str, Mapping[str, Any]],
    limits: Limits,
    folder: DataFolder | None,
) -> None:
    """Raises ActivationError unless every file is one that may be used, and each is used once.

    Records of two lanes must not mix, and a pipeline that reads what it writes would never end and fill the disk: so neither
    by another name, nor by a link, nor by a hard link.
    """
    used: dict[object, str] = {}
    for side, adapters in (("ingress", ingress), ("egress", egress)):
        for lane, adapter in adapters.items():
            if adapter["type"] != "file":
                continue
            keys: list[object] = [limits.path(adapter["path"])]
            assert folder is not None  # or the path was refused
            try:
                keys.append(folder.check(adapter["path"]))
            except FileRefused as error:
                raise ActivationError(error.code, error.message) from error
            for key in keys:
                other = used.setdefault(key, f"{side} {lane}") if key is not None else None
                if other is not None and other != f"{side} {lane}":
                    loop = side == "egress" and other.startswith("ingress ")
                    words = (
                        "the pipeline would read the file that it writes" if loop else "two lanes name the same file"
                    )
                    raise ActivationError("path_not_allowed", words)
