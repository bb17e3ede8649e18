"""Evaluates deploy/observe/alerts.yml on a server's metrics, by Prometheus' own promtool."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

from gatherd_server.cli.top import Scrape

OBSERVE = Path(__file__).parent.parent.parent / "deploy/observe"
RULES, CASES = OBSERVE / "alerts.yml", OBSERVE / "alerts_test.yml"
NO_PROMTOOL = "no promtool: `make observe-tools` installs Debian's prometheus"
INTERVAL_SECONDS = 5


def firing(alert: str) -> str:
    """A query that has one sample, 1, while the alert fires."""
    return f'count by (alertname) (ALERTS{{alertstate="firing",alertname="{alert}"}})'


def promtool() -> str | None:
    """The command, if it is installed."""
    return shutil.which("promtool")


def verdict(cases: Path) -> str:
    """The failures that promtool finds in a file of cases; empty if they all hold."""
    command = promtool()
    assert command is not None
    done = subprocess.run(
        [command, "test", "rules", cases], capture_output=True, text=True, timeout=60
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def fires(folder: Path, scrapes: Sequence[Scrape], alert: str, after_seconds: int) -> str:
    """Empty when `alert` fires, `after_seconds` from the first of `scrapes`, 5 s apart.

    The last one is repeated. All scraped series are used, with their names and labels as they are.
    """
    keys = {
        (name, labels) for scrape in scrapes for name, series in scrape.values.items()
        for labels in series
    }  # fmt: skip
    inputs = []
    for name, labels in sorted(keys):
        told = {"job": "gatherd", "instance": "a", **dict(labels)}
        values = [scrape.values.get(name, {}).get(labels) for scrape in scrapes]
        inputs.append(
            {
                "series": f"{name}{{{','.join(f'{k}={v!r}' for k, v in told.items())}}}",
                "values": " ".join("_" if one is None else f"{one:.17g}" for one in values)
                + f" {values[-1]:.17g}x{after_seconds // INTERVAL_SECONDS}",
            }
        )
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{INTERVAL_SECONDS}s",
        "tests": [
            {
                "interval": f"{INTERVAL_SECONDS}s",
                "input_series": inputs,
                "promql_expr_test": [
                    {
                        "expr": firing(alert),
                        "eval_time": f"{after_seconds}s",
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
                    }
                ],
            }
        ],
    }
    cases = folder / f"{alert}.yml"
    cases.write_text(yaml.safe_dump(document))
    return verdict(cases)
