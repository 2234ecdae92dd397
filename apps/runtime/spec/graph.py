"""A plan as a picture: DOT for tools, and an SVG laid out here, with no program but this one.

The SVG carries no style of its own beyond presentation attributes in `currentColor`, so that it follows the
page (light or dark) and a policy without inline styles. Classes for the page's style sheet: `graph`,
`graph-edge`, `graph-node`, `graph-node-end` (ingress and egress), `graph-node-power` (needs a capability),
`graph-name`, `graph-op`.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from apps.runtime.spec.plan import EGRESS, INGRESS, Plan

_BOX_W, _BOX_H, _END_W = 184, 52, 92
_GAP_X, _GAP_Y, _PAD, _ARROW = 56, 24, 16, 9


def to_dot(plan: Plan) -> str:
    """The graph in the DOT language (Graphviz), one statement a line, the same bytes for the same plan."""
    lines = [f"digraph {_quoted(plan.name)} {{", "  rankdir=LR;", "  node [shape=box];"]
    lines += [f"  {_quoted(end)} [shape=ellipse];" for end in (INGRESS, EGRESS)]
    for stage in plan.stages:
        op = stage.op if stage.argument is None else f"{stage.op}:{stage.argument}"
        lines.append(f"  {_quoted('stage:' + stage.id)} [label={_quoted(stage.id + chr(10) + op)}];")
    lines += [f"  {_quoted(source)} -> {_quoted(target)};" for source, target in _edges(plan)]
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(plan: Plan) -> str:
    """The graph as one `<svg>` element, left to right, with an accessible name.

    Every text is escaped; long names are shortened and whole in a tooltip.
    """
    nodes, ways, width, height = _layout(plan)
    order = ", ".join(f"{stage.id} ({stage.op})" for stage in plan.stages)
    label = f"Pipeline {plan.name}: from ingress to egress through {order}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(label)}">'
        f"<title>Pipeline {escape(plan.name)}</title>"
    ]
    parts += [_drawn_edge(*way) for way in ways]
    parts += [_drawn(node) for node in nodes]
    return "".join([*parts, "</svg>"])


@dataclass(slots=True)
class _Node:
    name: str
    label: str
    op: str
    css: str
    x: int
    y: int
    w: int


def _edges(plan: Plan) -> list[tuple[str, str]]:
    """Pairs of nodes: `ingress`, `stage:<id>`, `egress`. A stage may itself be called ingress or egress."""
    edges: list[tuple[str, str]] = []
    for stage in plan.stages:
        sources = ["stage:" + name for name in stage.depends_on] or [INGRESS]
        edges += [(source, "stage:" + stage.id) for source in sources]
    return edges + [("stage:" + name, EGRESS) for name in plan.barriers[-1].waits_for]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _layout(plan: Plan) -> tuple[list[_Node], list[list[_Node]], int, int]:
    """Columns by the longest way from the ingress; an edge over several columns gets a free row in each between."""
    column: dict[str, int] = {INGRESS: 0}
    for stage in plan.stages:
        column["stage:" + stage.id] = 1 + max((column["stage:" + name] for name in stage.depends_on), default=0)
    last = 1 + max(column.values())
    column[EGRESS] = last
    rows: list[list[str]] = [[] for _ in range(last + 1)]
    for name, at in column.items():
        rows[at].append(name)
    ways: list[list[str]] = []
    for source, target in _edges(plan):
        way = [source]
        for at in range(column[source] + 1, column[target]):
            via = f"via:{source}:{target}:{at}"
            rows[at].append(via)
            way.append(via)
        ways.append([*way, target])
    tallest = max(len(row) for row in rows)
    height = 2 * _PAD + tallest * _BOX_H + (tallest - 1) * _GAP_Y
    left: list[int] = []
    x = _PAD
    for at in range(last + 1):
        left.append(x)
        x += (_END_W if at in (0, last) else _BOX_W) + _GAP_X
    width = x - _GAP_X + _PAD
    spots: dict[str, _Node] = {}
    stages = {"stage:" + stage.id: stage for stage in plan.stages}
    for at, row in enumerate(rows):
        used = len(row) * _BOX_H + (len(row) - 1) * _GAP_Y
        y = (height - used) // 2
        for name in row:
            box = _END_W if at in (0, last) else _BOX_W
            step = stages.get(name)
            css = "graph-node graph-node-end" if step is None else "graph-node"
            if step is not None and step.capability:
                css = "graph-node graph-node-power"
            op = step.op if step else ""
            spots[name] = _Node(name, step.id if step else name, op, css, left[at], y, box)
            y += _BOX_H + _GAP_Y
    nodes = [node for node in spots.values() if not node.name.startswith("via:")]
    return nodes, [[spots[name] for name in way] for way in ways], width, height


def _drawn_edge(first: _Node, *others: _Node) -> str:
    """A curve from box to box, flat through the free rows, with its own arrow head: no ids that a page may repeat."""
    x, y = first.x + first.w, first.y + _BOX_H // 2
    parts = [f"M{x} {y}"]
    for node in others:
        to_x, to_y = node.x, node.y + _BOX_H // 2
        end = to_x - _ARROW if node is others[-1] else to_x
        bend = (end - x) // 2
        parts.append(f"C{x + bend} {y} {end - bend} {to_y} {end} {to_y}")
        x, y = to_x, to_y
        if node is not others[-1]:
            x += node.w
            parts.append(f"H{x}")
    return (
        f'<path class="graph-edge" d="{"".join(parts)}" fill="none" stroke="currentColor" stroke-opacity="0.55" '
        f'stroke-width="1.5"/><path class="graph-arrow" d="M{x - _ARROW} {y - 4}L{x} {y}L{x - _ARROW} {y + 4}Z" '
        'fill="currentColor" fill-opacity="0.7"/>'
    )


def _drawn(node: _Node) -> str:
    middle = node.x + node.w // 2
    radius = _BOX_H // 2 if "graph-node-end" in node.css else 8
    name_y = node.y + (_BOX_H // 2 + 5 if not node.op else 22)
    text = (
        f'<text class="graph-name" x="{middle}" y="{name_y}" text-anchor="middle" font-size="14" '
        f'fill="currentColor">{escape(_short(node.label, 20))}</text>'
    )
    if node.op:
        text += (
            f'<text class="graph-op" x="{middle}" y="{node.y + 40}" text-anchor="middle" font-size="12" '
            f'fill="currentColor" fill-opacity="0.75">{escape(_short(node.op, 24))}</text>'
        )
    tooltip = escape(node.label if not node.op else f"{node.label}: {node.op}")
    return (
        f'<g class="{node.css}"><title>{tooltip}</title><rect x="{node.x}" y="{node.y}" width="{node.w}" '
        f'height="{_BOX_H}" rx="{radius}" fill="none" stroke="currentColor" stroke-width="1.5"/>{text}</g>'
    )


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"
