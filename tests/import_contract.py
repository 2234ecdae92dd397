"""The contract that import-linter checks: which module of which app may import which (docs/architecture.md, Layers)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module stands: its app, and whether it is a delivery module. `base`: one that all delivery modules may import."""

    app: str
    delivery: bool
    base: bool


class AppLayers(Contract):
    """Apps in layers, highest first (siblings joined by `|`), with their delivery modules above all domain modules.

    - A domain module imports domain modules of its own app and of apps in lower layers.
    - A delivery module imports these too, delivery modules of its own app, and the `bases`.
    - A `top` app holds delivery modules alone and imports everything.
    """

    type_name = "app_layers"

    root = fields.StringField()
    layers = fields.ListField(subfield=fields.StringField())
    top = fields.SetField(subfield=fields.StringField())
    bases = fields.SetField(subfield=fields.StringField())
    delivery = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every import between the apps, type-checking ones included."""
        broken = sorted(set(self._broken(graph)))
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """One line for each import that may not be."""
        for importer, imported, why in check.metadata["broken"]:
            output.print_error(f"{importer} -> {imported}: {why}", bold=False)
        output.new_line()

    def _broken(self, graph: ImportGraph) -> Iterator[tuple[str, str, str]]:
        for importer in graph.modules:
            here = self._place(importer)
            if here is None:
                continue
            for imported in graph.find_modules_directly_imported_by(importer):
                there = self._place(imported)
                if there is not None and (why := self._refusal(here, there)):
                    yield importer, imported, why

    def _place(self, module: str) -> _Place | None:
        parts = module.split(".")
        if parts[0] != self.root or len(parts) < 2 or "migrations" in parts:
            return None
        app, rest = parts[1], parts[2:3]
        base = any(f"{module}.".startswith(f"{each}.") for each in self.bases)
        return _Place(app, base or app in self.top or bool(set(rest) & self.delivery), base)

    def _refusal(self, here: _Place, there: _Place) -> str:
        if there.delivery and not here.delivery:
            return "a domain module imports a delivery module"
        if here.app == there.app or (here.app in self.top and not here.base):
            return ""
        if there.delivery:
            return "" if there.base else "a delivery module of another app"
        if here.base:
            return ""
        if here.app not in self._heights or there.app not in self._heights:
            return "an app that no layer names"
        return "" if self._heights[there.app] < self._heights[here.app] else "an app that is not below its own"

    @property
    def _heights(self) -> dict[str, int]:
        return {app.strip(): -depth for depth, layer in enumerate(self.layers) for app in layer.split("|")}
