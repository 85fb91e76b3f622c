"""The Grafana dashboard asks for what the endpoint exports, and for all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from lsat_ray.scoring.model import Model
from lsat_ray.scoring.served import Served
from lsat_ray.serving.metrics import Metrics

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster/grafana-dashboard.json"


def exported() -> dict[str, set[str]]:
    """Return the labels of every sample that a replica exports once it has answered and shadowed something."""
    metrics = Metrics("r1")
    metrics.request("/v1/score", 200, 0.01)
    metrics.serving(Served(1, (Model("a", 1, "frozen"),), Model("b", 1, "frozen")))
    metrics.losses({"champion": ("a", 0.6), "candidate": ("b", 0.5)}, 2)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_expression_asks_for_metrics_and_labels_that_there_are() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    known, asked = exported(), set()
    for target in [target for panel in panels for target in panel["targets"]]:
        expression = target["expr"]
        names = set(re.findall(r"lsat_ray_\w+", expression))
        assert names and names <= known.keys(), expression
        asked |= names
        labels = set().union(*(known[name] for name in names))
        groups = re.findall(r"by \(([^)]*)\)", expression)
        used = {label.strip() for group in groups for label in group.split(",")}
        used |= set(re.findall(r'(\w+)=~?"', expression)) | set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert used <= labels, f"{expression} / {target['legendFormat']}"
        assert expression.count("(") == expression.count(")")
    families = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in known}
    shown = {re.sub(r"_(bucket|total)$", "", name) for name in asked}
    assert families == shown, "a metric that nobody sees"


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [(p["x"] + i, p["y"] + j) for p in places for i in range(p["w"]) for j in range(p["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
