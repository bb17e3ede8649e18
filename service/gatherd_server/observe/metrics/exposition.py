"""Prometheus' text format, version 0.0.4, in which `GET /metrics` answers.

A label without a value is left out, as Prometheus takes the two for the same. A counter or
histogram without labels is always shown, so that a rate of it never lacks data. A gauge is shown
once it is set: a server without a data dir has no checkpoint to be late with.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from gatherd_server.observe.metrics.names import METRICS, Metric, MetricKind
from gatherd_server.observe.metrics.recorder import Series

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sample:
    """A value that is known at the scrape, unscaled."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


def exposition(series: Iterable[Series], samples: Iterable[Sample]) -> str:
    """The document. Series of the same labels, of several processes, are added up."""
    cells: dict[str, dict[tuple[str, ...], list[float]]] = {metric.name: {} for metric in METRICS}
    for metric, labels, values in series:
        _add(cells[metric.name], labels, values)
    for sample in samples:
        _add(cells[sample.metric.name], sample.labels, (sample.value,))
    lines: list[str] = []
    for metric in METRICS:
        by_labels = cells[metric.name]
        if not by_labels and not metric.labels and metric.kind is not MetricKind.GAUGE:
            by_labels[()] = [0.0] * metric.cell_count
        if not by_labels:
            continue
        lines.append(f"# HELP {metric.name} {_escape_help(metric.help)}")
        lines.append(f"# TYPE {metric.name} {metric.kind.value}")
        for labels, added in sorted(by_labels.items()):
            named = zip(metric.labels, labels, strict=True)
            pairs = [_pair(name, value) for name, value in named if value]
            if metric.kind is MetricKind.HISTOGRAM:
                lines += _histogram(metric, pairs, added)
            else:
                lines.append(f"{metric.name}{_braces(pairs)} {_number(added[0], metric.scale)}")
    return "\n".join(lines) + "\n"


def _add(
    by_labels: dict[tuple[str, ...], list[float]],
    labels: tuple[str, ...],
    values: Iterable[float],
) -> None:
    known = by_labels.get(labels)
    if known is None:
        by_labels[labels] = list(values)
    else:
        by_labels[labels] = [a + b for a, b in zip(known, values, strict=True)]


def _histogram(metric: Metric, pairs: list[str], values: list[float]) -> list[str]:
    *counts, total = values
    bounds = [_number(bound, metric.scale) for bound in metric.bounds] + ["+Inf"]
    lines = [
        f"{metric.name}_bucket{_braces([*pairs, _pair('le', bound)])} {count:.0f}"
        for bound, count in zip(bounds, accumulate(counts), strict=True)
    ]
    lines.append(f"{metric.name}_sum{_braces(pairs)} {_number(total, metric.scale)}")
    lines.append(f"{metric.name}_count{_braces(pairs)} {sum(counts):.0f}")
    return lines


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float, scale: float) -> str:
    if scale == 1 and value == int(value):
        return str(int(value))
    return repr(round(value * scale, 9))


def _pair(name: str, value: str) -> str:
    return f'{name}="{_escape(value)}"'


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _escape_help(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
