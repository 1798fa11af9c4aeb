"""docs/http.md names what the server answers, and the dashboard what it measures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from darl_rerank.serving.app import RERANK_PATHS
from darl_rerank.serving.metrics import Metrics
from darl_rerank.serving.shapes import read_request

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_reference_names_every_path_and_field() -> None:
    page = (DOCS / "http.md").read_text("utf-8")
    paths = (*RERANK_PATHS, "/search", "/demo", "/info", "/ready")
    assert all(f"`{path}`" in page or f" {path}`" in page for path in paths)
    asked = Asked(query="a", documents=["b"], texts=["b"])
    read_request("rerank", asked, max_documents=1)
    read_request("tei", asked, max_documents=1)
    assert len(asked.names) > 10
    assert [name for name in asked.names if f"`{name}`" not in page] == []


class Asked(dict[str, Any]):
    """A body that remembers which fields were asked for."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = (DOCS / "grafana.json").read_text("utf-8")
    wanted = set(re.findall(r"darl_[a-z0-9_]+", dashboard))
    lines = Metrics().text().decode().splitlines()
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    offered = {
        name + ending
        for name, kind in types.items()
        for ending in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    assert wanted <= offered, wanted - offered
    assert len(wanted) > 10
