"""Reads the deployment's series in Prometheus, and checks that the dashboard would show them.

Grafana itself isn't asked: each query of its dashboard goes to Prometheus' API as Grafana would
send it, with the dashboard's variables filled in.
"""

import json
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deployment import ROOT

DASHBOARD: Final = ROOT / "deploy/observe/grafana/dashboards/gatherd.json"
ALERTS: Final = ROOT / "deploy/observe/alerts.yml"
# Grafana makes this at least four scrape intervals.
RATE_INTERVAL: Final = "1m"
# A healthy server has none of these: their series begin with the first such event. Backups need a
# store, which compose doesn't have.
EMPTY_IS_FINE: Final = ("gatherd_shed_requests_total", 'outcome="failed"', "gatherd_backup")


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The HTTP API of Prometheus."""

    url: str

    def get(self, path: str, **query: str) -> Any:
        """The data of a successful answer."""
        target = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(target, timeout=10) as reply:
            answer = json.load(reply)
        if answer["status"] != "success":
            raise AssertionError(f"{path} {query}: {answer}")
        return answer["data"]

    def is_scraping(self) -> bool:
        """Whether gatherd answered its last scrape."""
        targets = self.get("targets")["activeTargets"]
        return [target["health"] for target in targets] == ["up"]

    def rules(self) -> dict[str, str]:
        """The state of each alert whose expression could be evaluated."""
        rules = [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
        return {rule["name"]: rule["state"] for rule in rules if rule["health"] == "ok"}

    def series(self, expression: str) -> list[Any]:
        """The current series of an expression, without those that are NaN."""
        result: list[Any] = self.get("query", query=expression)["result"]
        return [one for one in result if one["value"][1] != "NaN"]


def dashboard_queries(path: Path = DASHBOARD) -> list[tuple[str, str]]:
    """Title and expression of each query of the dashboard, as Grafana would send them."""
    panels = json.loads(path.read_text())["panels"]
    return [
        (panel["title"], filled_in(target["expr"]))
        for panel in panels
        for target in panel.get("targets", [])
    ]


def filled_in(expression: str) -> str:
    """`expression` with every instance and every table chosen."""
    expression = expression.replace("$__rate_interval", RATE_INTERVAL)
    return re.sub(r"\$(instance|table)\b", ".*", expression)


def alert_names() -> set[str]:
    """The names of the alerts that have to exist."""
    return set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
