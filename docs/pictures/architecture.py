"""Draws docs/images/architecture.svg from the imports in the code. Needs graphviz.

``python docs/pictures/architecture.py`` writes it. A node is a package, or a module beside the packages;
an arrow points at what is imported. Arrows that others imply are left out.
"""

from __future__ import annotations

from pathlib import Path

import grimp
import networkx as nx
import pydot

TARGET = Path(__file__).parent.parent / "images" / "architecture.svg"
LEFT_OUT = {"fxgraft", "fxgraft.__main__"}  # they import everything there is to import


def packages() -> nx.DiGraph[str]:
    """Package -> packages that it imports, without the arrows that others imply."""
    imports = grimp.build_graph("fxgraft", "fxgraft_passes", exclude_type_checking_imports=True)
    graph: nx.DiGraph[str] = nx.DiGraph()
    for module in imports.modules:
        if module not in LEFT_OUT:
            graph.add_node(_room(module))
        for imported in imports.find_modules_directly_imported_by(module):
            here, there = _room(module), _room(imported)
            if here != there and not {module, imported, here, there} & LEFT_OUT:
                graph.add_edge(here, there)
    rounds = [c for c in nx.strongly_connected_components(graph) if len(c) > 1]
    assert not rounds, f"packages that import each other: {rounds}"
    return nx.transitive_reduction(graph)


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "fxgraft_passes" else ".".join(parts[:2])


def draw() -> bytes:
    """The picture, as SVG."""
    drawing = pydot.Dot("fxgraft", rankdir="TB", nodesep="0.15", ranksep="0.35", bgcolor="white")
    drawing.set_node_defaults(
        shape="box", style="rounded", fontname="Helvetica", fontsize="11", margin="0.1,0.05"
    )
    drawing.set_edge_defaults(color="#7d8590", arrowsize="0.6")
    graph = packages()
    for package in sorted(graph.nodes):
        folder = (Path("fxgraft") / package.removeprefix("fxgraft.")).is_dir() or package == "fxgraft_passes"
        drawing.add_node(
            pydot.Node(
                f'"{package}"', label=f'"{package.removeprefix("fxgraft.")}"', penwidth="2" if folder else "1"
            )
        )
    for here, there in sorted(graph.edges):
        drawing.add_edge(pydot.Edge(f'"{here}"', f'"{there}"'))
    return bytes(drawing.create_svg())


if __name__ == "__main__":
    TARGET.write_bytes(draw())
