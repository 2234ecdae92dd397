"""The import contract refuses what docs/architecture.md refuses."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from grimp import ImportGraph

from tests.import_contract import AppLayers

PROJECT = Path(__file__).resolve().parents[1]


def contract() -> AppLayers:
    configured = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
    options: dict[str, Any] = next(each for each in configured["contracts"] if each["type"] == "app_layers")
    return AppLayers(name="layers", session_options={"root_packages": ["apps"]}, contract_options=options)


def refusals(importer: str, imported: str) -> list[str]:
    graph = ImportGraph()
    graph.add_module("apps")
    for name in (importer, imported):
        graph.add_module(name)
    graph.add_import(importer=importer, imported=imported)
    return [why for _, _, why in contract().check(graph, verbose=False).metadata["broken"]]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("apps.deployments.services.builds", "apps.agents.selectors"),
        ("apps.agents.api.protocol", "apps.agents.services.keys"),
        ("apps.agents.api.protocol", "apps.api.base"),
        ("apps.approvals.admin", "apps.console.base.model_admin"),
        ("apps.console.inbox", "apps.deployments.admin"),
        ("apps.api.base", "apps.access.policy"),
        ("apps.deployments.apps", "apps.deployments.jobs"),
    ],
)
def test_what_may_be_imported(importer: str, imported: str) -> None:
    assert refusals(importer, imported) == []


@pytest.mark.parametrize(
    ("importer", "imported", "why"),
    [
        ("apps.agents.services.keys", "apps.deployments.models", "not below its own"),
        ("apps.agents.services.keys", "apps.pipelines.models", "not below its own"),
        ("apps.agents.services.keys", "apps.agents.api.protocol", "a delivery module"),
        ("apps.agents.services.keys", "apps.api.problems", "a delivery module"),
        ("apps.agents.services.keys", "apps.console.inbox", "a delivery module"),
        ("apps.tenancy.api", "apps.access.roles", "not below its own"),
        ("apps.deployments.api", "apps.agents.api.protocol", "delivery module of another app"),
        ("apps.deployments.admin", "apps.console.inbox", "delivery module of another app"),
        ("apps.api.base", "apps.console.inbox", "delivery module of another app"),
        ("apps.newcomer.services", "apps.core.ids", "no layer names"),
    ],
)
def test_what_may_not_be_imported(importer: str, imported: str, why: str) -> None:
    (found,) = refusals(importer, imported)
    assert why in found
