"""The recipes "Add a job" and "Add a page" of docs/development.md, followed word for word in one copy of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.test_development_doc import PARTS, ROOT, apply, recipe

pytestmark = [pytest.mark.alone, pytest.mark.timeout(480)]

JOB, PAGE = "Add a job", "Add a page"
PASSED = {
    JOB: (
        "test_every_draft_of_the_environment_is_checked_again_and_none_of_another",
        "test_a_deleted_environment_has_nothing_to_check",
    ),
    PAGE: (
        "test_targets_are_shown_to_those_who_may_look",
        "test_lists_open_for_members_and_hold_what_each_may_open_and_nothing_of_another_tenant[deployments.target]",
        "test_nothing_that_services_write_can_be_edited_or_deleted_by_hand[deployments.target]",
        "test_no_list_asks_more_than_twenty_queries_however_long_it_is",
    ),
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of the tests in a copy in which both recipes were followed."""
    folder = tmp_path_factory.mktemp("recipes")
    copy = folder / "copy"
    copy.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, copy / part)
    changed = [
        apply(copy, text) for heading in (JOB, PAGE) for language, text in recipe(heading) if language == "python"
    ]
    assert len(changed) == 8
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("BYTEOR_CLOUD_", "DJANGO_", "PYTEST_"))}
    environment |= {"BYTEOR_CLOUD_DATA_DIR": str(folder / "data")}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("ruff", "check", "--no-cache", "--select", "I", "--fix", *changed)
    run("ruff", "check", "--no-cache", *changed)
    run("ruff", "format", "--no-cache", "--check", *changed)
    run("tests.vocabulary")
    tests = ["tests/pipelines/test_recheck.py", "tests/deployments/test_target_page.py"]
    walking = ["tests/console/test_scoping.py", "tests/console/test_lists.py"]
    return run("pytest", "-v", "-p", "no:cacheprovider", *tests, *walking, "-k", "recheck or target or twenty")


@pytest.mark.parametrize("heading", [JOB, PAGE])
def test_the_recipe_works_as_it_is_written(outcome: str, heading: str) -> None:
    for name in PASSED[heading]:
        assert f"{name} PASSED" in outcome
