"""Documents, dashboards and rules name the metrics that there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gatherd_server.observe.metrics.names import METRICS, MetricKind

ROOT = Path(__file__).parent.parent.parent
OBSERVE = ROOT / "deploy/observe"
DASHBOARD = OBSERVE / "grafana/dashboards/gatherd.json"


def series_names() -> set[str]:
    """What Prometheus can be asked for."""
    names = set()
    for metric in METRICS:
        if metric.kind is MetricKind.HISTOGRAM:
            names |= {f"{metric.name}{end}" for end in ("_bucket", "_sum", "_count")}
        else:
            names.add(metric.name)
    return names


def queries() -> dict[str, list[str]]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    panels = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    variables = [variable["query"]["query"] for variable in dashboard["templating"]["list"]]
    return {
        "the dashboard": panels + variables,
        "the rules": [(OBSERVE / "alerts.yml").read_text()],
    }


def test_the_document_lists_every_metric_with_its_type_labels_and_meaning() -> None:
    rows = re.findall(
        r"^\| `(gatherd_\w+)` \| (\w+) \| (.+?) \| (.+) \|$",
        (ROOT / "docs/operations.md").read_text(),
        re.MULTILINE,
    )
    assert rows == [
        (
            metric.name,
            metric.kind.value,
            ", ".join(f"`{label}`" for label in metric.labels) or "–",
            metric.help,
        )
        for metric in METRICS
    ]


@pytest.mark.parametrize("where", queries())
def test_what_is_asked_of_prometheus_exists(where: str) -> None:
    asked = {name for query in queries()[where] for name in re.findall(r"\bgatherd_\w+", query)}
    assert asked
    assert asked - series_names() == set()


@pytest.mark.parametrize("where", queries())
def test_labels_that_queries_select_by_exist(where: str) -> None:
    by_name = {
        name: metric for metric in METRICS for name in (metric.name, f"{metric.name}_bucket")
    }
    for query in queries()[where]:
        for name, selector in re.findall(r"\b(gatherd_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)=~?\"|(\w+)!=", selector))
            flat = {one for pair in labels for one in pair if one}
            known = {
                "instance",
                "le",
                *by_name[name.removesuffix("_sum").removesuffix("_count")].labels,
            }
            assert flat <= known, (name, selector)


def test_every_alert_has_its_row_in_the_document() -> None:
    document = (ROOT / "docs/operations.md").read_text()
    for alert in re.findall(r"- alert: (\w+)", (OBSERVE / "alerts.yml").read_text()):
        assert re.search(rf"^\|.*`{alert}`.*\|$", document, re.MULTILINE), alert


def test_the_dashboard_shows_every_metric_of_traffic_tables_and_updates() -> None:
    shown = {
        name for query in queries()["the dashboard"] for name in re.findall(r"gatherd_\w+", query)
    }
    left_out = {
        "gatherd_process_start_time_seconds",
        "gatherd_reloads_total",
        "gatherd_table_refused",
        "gatherd_tokens_refused",
        "gatherd_writer_hung",  # gatherd_updates_up is shown, and is 0 then
    }
    for metric in METRICS:
        assert metric.name in left_out or any(name.startswith(metric.name) for name in shown), (
            metric.name
        )


def test_names_follow_prometheus_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"gatherd(_[a-z]+)+", metric.name)
        assert (metric.kind is MetricKind.COUNTER) == metric.name.endswith("_total")
        if metric.scale != 1:
            assert metric.name.endswith("_seconds")
        assert metric.help.endswith((".", "."))
