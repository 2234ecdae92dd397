"""A plan as a picture: DOT for tools, and an SVG laid out here, with no program but this one.

A ring is drawn as its stages between `ingress` and `egress`. A graph is drawn with its lanes as well as its roles: a lane is
where records wait, so it is a thing of its own, and the lanes where records come in and go out are the ends.

The SVG carries no style of its own beyond presentation attributes in `currentColor`, so that it follows the
page (light or dark) and a policy without inline styles. Classes for the page's style sheet: `graph`,
`graph-edge`, `graph-arrow`, `graph-node`, `graph-node-end` (ingress and egress), `graph-node-power` (needs a capability),
`graph-node-lane`, `graph-name`, `graph-op`.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import pairwise

from apps.runtime.spec.plan import EGRESS, INGRESS, Plan, PlanRole, PlanStage

_BOX_W, _END_W, _LANE_W = 184, 92, 148
_BOX_H, _GAP_X, _GAP_Y, _PAD, _ARROW = 52, 56, 24, 16, 9
_LANE_GAP_X = 36


@dataclass(slots=True)
class _Node:
    """`name` is unique, `label` and `op` are what is read in it, `kind` is `stage`, `role`, `lane` or `end`."""

    name: str
    label: str
    op: str
    kind: str
    w: int
    power: bool = False
    x: int = 0
    y: int = 0


@dataclass(slots=True)
class _Picture:
    """Nodes, each behind all that lead to it, and the edges between them by name."""

    nodes: list[_Node]
    edges: list[tuple[str, str]]
    label: str
    gap: int


def to_dot(plan: Plan) -> str:
    """The graph in the DOT language (Graphviz), one statement a line, the same bytes for the same plan."""
    shapes = {"end": "ellipse", "lane": "cds", "stage": "box", "role": "box"}
    picture = _picture(plan)
    lines = [f"digraph {_quoted(plan.name)} {{", "  rankdir=LR;", "  node [shape=box];"]
    for node in picture.nodes:
        shape = "" if node.kind == "stage" else f"shape={shapes[node.kind]}"
        text = node.label if not node.op else f"{node.label}\n{node.op}"
        label = "" if text == node.name else f"label={_quoted(text)}"
        lines.append(f"  {_quoted(node.name)} [{', '.join(item for item in (shape, label) if item)}];")
    lines += [f"  {_quoted(source)} -> {_quoted(target)};" for source, target in picture.edges]
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(plan: Plan) -> str:
    """The graph as one `<svg>` element, left to right, with an accessible name.

    Every text is escaped; long names are shortened and whole in a tooltip.
    """
    picture = _picture(plan)
    ways, width, height = _layout(picture)
    label = f"Pipeline {plan.name}: {picture.label}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(label)}">'
        f"<title>Pipeline {escape(plan.name)}</title>"
    ]
    parts += [_drawn_edge(*way) for way in ways]
    parts += [_drawn(node) for node in picture.nodes]
    return "".join([*parts, "</svg>"])


def _picture(plan: Plan) -> _Picture:
    return _graph_picture(plan) if plan.roles or plan.target == "LaneGraph" else _ring_picture(plan)


def _ring_picture(plan: Plan) -> _Picture:
    """Nodes `ingress`, `stage:<id>`, `egress`. A stage may itself be called ingress or egress."""
    nodes = [_Node(INGRESS, INGRESS, "", "end", _END_W)]
    edges: list[tuple[str, str]] = []
    for stage in plan.stages:
        nodes.append(_Node("stage:" + stage.id, stage.id, _op(stage), "stage", _BOX_W, bool(stage.capability)))
        sources = ["stage:" + name for name in stage.depends_on] or [INGRESS]
        edges += [(source, "stage:" + stage.id) for source in sources]
    nodes.append(_Node(EGRESS, EGRESS, "", "end", _END_W))
    edges += [("stage:" + name, EGRESS) for name in plan.barriers[-1].waits_for]
    order = ", ".join(f"{stage.id} ({stage.op})" for stage in plan.stages)
    return _Picture(nodes, edges, f"from ingress to egress through {order}", _GAP_X)


def _graph_picture(plan: Plan) -> _Picture:
    """Nodes `lane:<name>` and `role:<name>`."""
    stages = {stage.id: stage for stage in plan.stages}
    lanes = {lane.name: lane for lane in plan.lanes}
    ends = {
        name: [word for word, at in ((INGRESS, plan.ingress), (EGRESS, plan.egress)) if name in at] for name in lanes
    }

    def lane_node(name: str) -> _Node:
        lane = lanes[name]
        words = [*ends[name], f"{lane.kind} {lane.capacity}"]
        return _Node("lane:" + name, name, ", ".join(words), "end" if ends[name] else "lane", _LANE_W)

    nodes: list[_Node] = []
    drawn: set[str] = set()
    edges: list[tuple[str, str]] = []
    for role in plan.roles:
        stage = stages.get(role.name)
        power = stage is not None and bool(stage.capability)
        nodes += [lane_node(name) for name in role.rx if name not in drawn]
        drawn.update(role.rx)
        nodes.append(_Node("role:" + role.name, role.name, _does(role, stage), "role", _BOX_W, power))
        edges += [("lane:" + name, "role:" + role.name) for name in role.rx]
        edges += [("role:" + role.name, "lane:" + name) for name in role.tx]
    nodes += [lane_node(name) for name in plan.egress if name not in drawn]
    order = ", ".join(f"{role.name} ({_does(role, stages.get(role.name))})" for role in plan.roles)
    ways = f"from {', '.join(plan.ingress)} to {', '.join(plan.egress)}"
    return _Picture(nodes, edges, f"{ways} through {order}" if order else ways, _LANE_GAP_X)


def _op(stage: PlanStage) -> str:
    return stage.op if stage.argument is None else f"{stage.op}:{stage.argument}"


def _does(role: PlanRole, stage: PlanStage | None) -> str:
    if stage is not None:
        return _op(stage)
    if role.policy is None:
        return role.kind
    return f"{role.kind} {role.policy}" + (f" {role.hash_key}" if role.hash_key else "")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _layout(picture: _Picture) -> tuple[list[list[_Node]], int, int]:
    """Place every node and answer the way of every edge, the width and the height.

    Columns by the longest way to a node, ends without successor last; an edge over several columns gets a free row in each
    between; rows in the order of what leads to them, so that few edges cross.
    """
    spots = {node.name: node for node in picture.nodes}
    column = _columns(picture)
    rows: list[list[str]] = [[] for _ in range(max(column.values()) + 1)]
    for name, at in column.items():
        rows[at].append(name)
    ways: list[list[str]] = []
    before: dict[str, list[str]] = {}
    for source, target in picture.edges:
        way = [source]
        for at in range(column[source] + 1, column[target]):
            via = f"via:{source}:{target}:{at}"
            spots[via] = _Node(via, "", "", "via", 0)
            rows[at].append(via)
            way.append(via)
        way.append(target)
        for one, other in pairwise(way):
            before.setdefault(other, []).append(one)
        ways.append(way)
    tallest = max(len(row) for row in rows)
    height = 2 * _PAD + tallest * _BOX_H + (tallest - 1) * _GAP_Y
    x = _PAD
    for row in rows:
        width = max(spots[name].w for name in row)
        used = len(row) * _BOX_H + (len(row) - 1) * _GAP_Y
        y = (height - used) // 2
        for name in sorted(row, key=lambda name: _middle([spots[one].y for one in before.get(name, [])])):
            spots[name].x, spots[name].y = x, y
            spots[name].w = spots[name].w or width
            y += _BOX_H + _GAP_Y
        x += width + picture.gap
    return [[spots[name] for name in way] for way in ways], x - picture.gap + _PAD, height


def _columns(picture: _Picture) -> dict[str, int]:
    after: dict[str, list[str]] = {}
    for source, target in picture.edges:
        after.setdefault(source, []).append(target)
    column = {node.name: 0 for node in picture.nodes}
    for node in picture.nodes:
        for target in after.get(node.name, []):
            column[target] = max(column[target], column[node.name] + 1)
    last = max(column.values())
    return {name: at if name in after or at == 0 else last for name, at in column.items()}


def _middle(places: list[int]) -> float:
    return sum(places) / len(places) if places else 0.0


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
    css = {"end": "graph-node graph-node-end", "lane": "graph-node graph-node-lane"}.get(node.kind, "graph-node")
    if node.power:
        css += " graph-node-power"
    middle = node.x + node.w // 2
    radius = 8 if node.kind in ("stage", "role") else _BOX_H // 2
    wide = node.w // 9
    name_y = node.y + (_BOX_H // 2 + 5 if not node.op else 22)
    text = (
        f'<text class="graph-name" x="{middle}" y="{name_y}" text-anchor="middle" font-size="14" '
        f'fill="currentColor">{escape(_short(node.label, wide))}</text>'
    )
    if node.op:
        size = 12 if node.kind in ("stage", "role") else 11
        text += (
            f'<text class="graph-op" x="{middle}" y="{node.y + 40}" text-anchor="middle" font-size="{size}" '
            f'fill="currentColor" fill-opacity="0.75">{escape(_short(node.op, node.w * 2 // (size + 3)))}</text>'
        )
    tooltip = escape(node.label if not node.op else f"{node.label}: {node.op}")
    # a lane is where records wait, not what does something to them: dashes distinguish it from a role without any color
    dashes = ' stroke-dasharray="4 3"' if node.kind == "lane" else ""
    return (
        f'<g class="{css}"><title>{tooltip}</title><rect x="{node.x}" y="{node.y}" width="{node.w}" '
        f'height="{_BOX_H}" rx="{radius}" fill="none" stroke="currentColor" stroke-width="1.5"{dashes}/>{text}</g>'
    )


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\u2026"
