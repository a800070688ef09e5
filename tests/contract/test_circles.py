"""No module of wikillm imports itself through others, in functions and for annotations included."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


def check_no_circle(graph: grimp.ImportGraph) -> None:
    """Raises CycleError with the modules of a circle."""
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()


def test_no_import_circles() -> None:
    graph = grimp.build_graph("wikillm", cache_dir=None)
    assert len(graph.modules) > 300
    check_no_circle(graph)
    # One import more, from the lowest layer to the highest, closes circles.
    graph.add_import(importer="wikillm.core.errors", imported="wikillm.cli.main")
    with pytest.raises(CycleError):
        check_no_circle(graph)
