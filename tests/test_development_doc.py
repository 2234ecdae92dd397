"""The recipe "Add an endpoint" of docs/development.md, followed word for word in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.timeout(480)]

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("apps", "byteor", "docs", "static", "templates", "tests", "manage.py", "pyproject.toml")
WALKED = "tests/api/test_walked.py"
WALKING = """
import pytest

from tests.api.test_order_of_checks import single_reads
from tests.api.test_order_of_checks import test_an_unknown_parameter_is_refused_after_the_rest as judged


@pytest.mark.django_db
def test_the_tests_that_walk_every_path_walk_progress_too(tenant):
    [path] = [path for path in single_reads() if path.endswith("/progress")]
    judged(tenant, path)


"""
END_OF, IMPORTS, INTO_URLS, NEW = "at the end of ", "among the imports of ", "in urlpatterns of ", "a new file "
INTO_REGISTER, CHANGED_IMPORTS = "in register() of ", "in the imports of "


def recipe(heading: str) -> list[tuple[str, str]]:
    """(language, text) of each code block below a heading of the page."""
    page = (ROOT / "docs" / "development.md").read_text()
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


def apply(copy: Path, block: str) -> str:
    """Make the edit that the first line of a Python block names; the file that was changed."""
    where, _, code = block.partition("\n")
    where = where.removeprefix("# ")
    kinds = (END_OF, IMPORTS, INTO_URLS, NEW, INTO_REGISTER, CHANGED_IMPORTS)
    kind = next(kind for kind in kinds if where.startswith(kind))
    name = where.removeprefix(kind)
    path = copy / name
    if kind == NEW:
        path.write_text(code)
    elif kind == IMPORTS:
        first = "from __future__ import annotations\n\n"
        path.write_text(path.read_text().replace(first, f"{first}{code}", 1))
    elif kind == END_OF:
        path.write_text(f"{path.read_text()}\n\n{code}")
    elif kind == INTO_REGISTER:
        text, count = re.subn(r"(\ndef register\(\)(?:.*\n)+?)(?=\n\n\w|\Z)", rf"\1{code}", path.read_text())
        assert count == 1
        path.write_text(text)
    elif kind == CHANGED_IMPORTS:
        text = path.read_text()
        for line in code.splitlines():
            module = line.partition(" import ")[0]
            text, count = re.subn(rf"^{re.escape(module)} import [^(\n]*$", line, text, flags=re.MULTILINE)
            if not count:
                first = "from __future__ import annotations\n\n"
                text = text.replace(first, f"{first}{line}\n", 1)
        path.write_text(text)
    else:
        text = path.read_text()
        assert text.endswith("]\n")
        path.write_text(f"{text.removesuffix(']' + chr(10))}{code}]\n")
    return name


def test_the_recipe_for_an_endpoint_works_as_it_is_written(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, copy / part)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_CLOUD_", "DJANGO_", "PYTEST_"))}
    environment |= {"BYTEOR_CLOUD_DATA_DIR": str(tmp_path / "data")}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    blocks = recipe("Add an endpoint")
    changed = [apply(copy, text) for language, text in blocks if language == "python"]
    assert len(changed) == 5
    run("-m", "ruff", "check", "--no-cache", "--select", "I", "--fix", *changed)
    [command] = [text.split() for language, text in blocks if language == "sh"]
    assert command[0] == "python"
    run(*command[1:])
    path = "ENV/deployments/{deployment_id}/progress"
    summary = "How many targets of the deployment are in each status."
    row = f"| GET | `{path}` | `deployment-progress` | ViewEnvironment | {summary} | `deployments` |"
    assert row in (copy / "docs" / "paths.md").read_text()
    assert row not in (ROOT / "docs" / "paths.md").read_text()
    run("-m", "ruff", "check", "--no-cache", *changed)
    run("-m", "ruff", "format", "--no-cache", "--check", *changed)
    (copy / WALKED).write_text(WALKING)
    tests = ["tests/deployments/test_progress.py", "tests/console/test_docs.py", WALKED]
    output = run("-m", "pytest", "-v", "-p", "no:cacheprovider", *tests, "-k", "progress or paths")
    for name in (
        "test_targets_are_counted_by_status_for_those_who_may_look",
        "test_the_list_of_paths_is_current",
        "test_the_tests_that_walk_every_path_walk_progress_too",
    ):
        assert f"{name} PASSED" in output
