"""`make bench [ONLY=name,…]`: every measurement, or the named ones. Each is a module here with `main()`."""

from __future__ import annotations

import importlib
import os

MEASUREMENTS = ("runtime",)


def main() -> None:
    """Run them one after another."""
    only = [name for name in os.environ.get("ONLY", "").split(",") if name]
    for name in MEASUREMENTS:
        if not only or name in only:
            print(f"\n== {name} ==", flush=True)
            importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main()
