"""`make bench [ONLY=name,…]`: every measurement, or the named ones. Each is a module here with `main()`."""

from __future__ import annotations

import os
import subprocess
import sys

MEASUREMENTS = ("runtime", "heartbeat", "reads", "lists", "deletion", "jobs", "road", "waits", "bodies", "slow_clients")


def main() -> None:
    """Run them one after another, each in a process of its own: they set Django up on databases of their own."""
    only = [name for name in os.environ.get("ONLY", "").split(",") if name]
    failed = 0
    for name in MEASUREMENTS:
        if not only or name in only:
            print(f"\n== {name} ==", flush=True)
            command = [sys.executable, "-c", f"import bench.{name}; bench.{name}.main()"]
            failed |= subprocess.run(command, check=False).returncode
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
