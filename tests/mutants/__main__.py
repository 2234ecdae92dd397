"""`make mutants`: run the mutants of the modules in `targets`, count, and compare the survivors with `survivors.toml`.

`python -m tests.mutants [GROUP or MODULE…]`; `MUTANTS=20` takes at most so many of each module, always the same ones;
`MUTANTS_SECONDS` is the longest that one mutant may take (60): what has not been noticed then is undecided.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.mutants.making import ROOT
from tests.mutants.targets import GROUPS, modules

WANTED = 0.9
SURVIVORS = Path(__file__).with_name("survivors.toml")
Key = tuple[str, str, str]


def listed_survivors() -> dict[Key, str]:
    """The survivors that were judged, with why they stay."""
    entries = tomllib.loads(SURVIVORS.read_text()).get("survivor", [])
    return {(entry["path"], entry["function"], entry["change"]): entry["why"] for entry in entries}


def run_mutants(
    paths: list[str],
    tests: Iterable[str],
    folder: Path,
    *,
    sample: int | None = None,
    seconds: float = 60,
    patience: float = 15,
) -> list[dict[str, Any]]:
    """The results of the mutants of modules, tried on `tests`. `folder` is empty and for this run alone.

    Raises CalledProcessError when the tests can't be run at all.
    """
    results, data = folder / "results.jsonl", folder / "data"
    data.mkdir(parents=True)
    results.touch()
    plan = {"paths": paths, "sample": sample, "seconds": seconds, "patience": patience, "results": str(results)}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BYTEOR_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-p", "tests.mutants.plugin", "-m", "not alone and not faults and not browser"]
    subprocess.run(
        [*command, *tests],
        cwd=ROOT,
        env={**kept, "PYTHONUNBUFFERED": "1", "BYTEOR_CLOUD_DATA_DIR": str(data), "BYTEOR_MUTANTS": json.dumps(plan)},
        check=True,
    )
    return [json.loads(line) for line in results.read_text().splitlines()]


def report(results: Iterable[dict[str, Any]], listed: dict[Key, str]) -> list[str]:
    """Print the table, survivors that are not listed, and what is listed in vain. Returns what is wrong."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    verdicts: dict[Key, dict[str, Any]] = {}
    for result in results:
        key = (result["path"], result["function"], result["change"])
        verdict = result["verdict"]
        verdicts[key] = result
        counts[result["path"]]["judged" if verdict == "survived" and key in listed else verdict] += 1
    print("\n| module | run | killed | survived, judged | survived | undecided | killed of decided |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    total: Counter[str] = Counter()
    for path in sorted(counts):
        total += counts[path]
        print(_row(path, counts[path]))
    print(_row("all", total))
    wrong = []
    for key, result in verdicts.items():
        if result["verdict"] == "survived" and key not in listed:
            print(
                f'\n[[survivor]]\npath = "{key[0]}"\nfunction = "{key[1]}"\nchange = {json.dumps(key[2], ensure_ascii=False)}'
            )
            print(f'why = ""  # line {result["line"]}, {result["tests"]} tests')
        if result["verdict"] == "killed" and key in listed:
            wrong.append(f"listed as a survivor, but killed by {result['by']}: {' '.join(key)}")
    decided = total["killed"] + total["judged"] + total["survived"]
    if total["survived"]:
        wrong.append(f"{total['survived']} of {decided} survived and are not listed")
    if decided and total["killed"] < WANTED * decided:
        wrong.append(f"fewer than {WANTED:.0%} of the decided are killed")
    return wrong


def _row(name: str, counts: Counter[str]) -> str:
    undecided = counts["undecided"] + counts["not applied"]
    decided = counts["killed"] + counts["judged"] + counts["survived"]
    share = f"{counts['killed'] / decided:.0%}" if decided else "–"
    return (
        f"| {name.removeprefix('apps/').removesuffix('.py')} | {decided + undecided} | {counts['killed']} "
        f"| {counts['judged']} | {counts['survived']} | {undecided} | {share} |"
    )


def main(wanted: list[str]) -> int:
    """0 when enough are killed and the list of survivors is right."""
    os.nice(5)
    began = time.monotonic()
    chosen = {name: modules(group) for name, group in GROUPS.items()}
    if wanted:
        chosen = {
            name: paths if name in wanted else [path for path in paths if path in wanted]
            for name, paths in chosen.items()
        }
        unknown = [
            word for word in wanted if word not in GROUPS and not any(word in paths for paths in chosen.values())
        ]
        if unknown:
            print(f"no such group or module: {', '.join(unknown)}; groups are {', '.join(GROUPS)}", file=sys.stderr)
            return 2
    sample, seconds = int(os.environ.get("MUTANTS", "0")) or None, float(os.environ.get("MUTANTS_SECONDS", "60"))
    folder = Path(tempfile.mkdtemp(prefix="byteor-mutants-"))
    results: list[dict[str, Any]] = []
    broken: list[str] = []
    try:
        for name, paths in chosen.items():
            if paths:
                print(f"\n== {name} ==", flush=True)
                try:
                    results += run_mutants(paths, GROUPS[name].tests, folder / name, sample=sample, seconds=seconds)
                except subprocess.CalledProcessError:
                    broken.append(f"the tests of {name} could not be run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wrong = broken + report(results, listed_survivors())
    print(f"\n{len(results)} mutants in {time.monotonic() - began:.0f} s")
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
