"""`gatherd top`: a server's present activity, in a terminal, from its /metrics.

Plain ANSI, and no more than fits on one screen. Left out on purpose: history, which Prometheus
keeps, and several servers, which Prometheus adds up.
"""

import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import click

from gatherd.errors import PermissionDenied, Unavailable
from gatherd_server.cli.connect import opener
from gatherd_server.cli.target import CommandTarget, addressed, target_options
from gatherd_server.observe.metrics import names
from gatherd_server.observe.metrics.names import Metric

TIMEOUT_SECONDS: Final = 10.0
DOCUMENT_BYTES_MAX: Final = 16 << 20
_CLEAR: Final = "\x1b[H\x1b[2J"
_LINE: Final = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")
_LABEL: Final = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scrape:
    """A server's metrics at one moment; `at` is in seconds of the monotonic clock."""

    at: float
    values: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def parse(cls, text: str, at: float) -> "Scrape":
        """From Prometheus' text format."""
        values: dict[str, dict[Labels, float]] = {}
        for line in text.splitlines():
            match = _LINE.fullmatch(line)
            if match is not None:
                labels = tuple(_LABEL.findall(match[2] or ""))
                values.setdefault(match[1], {})[labels] = float(match[3])
        return cls(at, values)

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels."""
        wanted = set(labels.items())
        series = self.values.get(name, {})
        return sum(value for key, value in series.items() if wanted <= set(key))

    def has(self, metric: Metric) -> bool:
        """Whether the server reports the metric."""
        return metric.name in self.values

    def label_values(self, name: str, label: str) -> list[str]:
        """The values that a label has, in order."""
        found = {dict(key).get(label, "") for key in self.values.get(name, {})}
        return sorted(found)


@dataclass(frozen=True, slots=True)
class Between:
    """The changes between two scrapes."""

    before: Scrape
    after: Scrape

    def rate(self, name: str, **labels: str) -> float:
        """A counter's rise per second; 0 when the server was restarted meanwhile."""
        rose = self.after.total(name, **labels) - self.before.total(name, **labels)
        return max(0.0, rose) / max(1e-9, self.after.at - self.before.at)

    def quantile(self, metric: Metric, part: float, **labels: str) -> float | None:
        """An upper bound of a histogram's quantile, in its shown unit; None without values."""
        name = f"{metric.name}_bucket"
        bounds = sorted(self.after.label_values(name, "le"), key=float)
        counts = [
            self.after.total(name, le=le, **labels) - self.before.total(name, le=le, **labels)
            for le in bounds
        ]
        if not counts or counts[-1] <= 0:
            return None
        reached = next(le for le, n in zip(bounds, counts, strict=True) if n >= part * counts[-1])
        return float(reached)


def _scrape(url: str, opener: urllib.request.OpenerDirector, root: str) -> Scrape:
    target = f"{url.rstrip('/')}: /metrics"
    try:
        with opener.open(f"{root}/metrics", timeout=TIMEOUT_SECONDS) as reply:
            text = reply.read(DOCUMENT_BYTES_MAX).decode()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise PermissionDenied(
                f"{target} takes a token with scope metrics: `gatherd token NAME --scope metrics` "
                "makes one, and --token-file FILE or GATHERD_TOKEN gives it"
            ) from None
        raise Unavailable(f"{target} answered {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or reason
        raise Unavailable(f"can't connect to {url}: {why}") from None
    return Scrape.parse(text, time.monotonic())


def frame(seen: Between, url: str, width: int) -> list[str]:
    """The lines of a screen of `width` characters."""
    lines = [*_head(seen, url), "", *_procedures(seen), "", *_tables(seen), "", *_processes(seen)]
    return [line[:width] for line in lines]


def _head(seen: Between, url: str) -> Iterator[str]:
    now = seen.after
    yield (
        f"gatherd {url}   {seen.rate(names.REQUESTS.name):,.0f} requests/s   "
        f"{now.total(names.REQUESTS_IN_FLIGHT.name):.0f} in flight   "
        f"{now.total(names.CONNECTIONS.name):.0f} connections   "
        f"{seen.rate(names.SHED_REQUESTS.name):,.0f} shed/s"
    )
    if not now.has(names.UPDATES_UP):
        yield "updates: none, the server has no data dir"
        return
    state = "running" if now.total(names.UPDATES_UP.name) else "STOPPED"
    if now.total(names.WRITER_HUNG.name):
        state = "HUNG"
    age = time.time() - now.total(names.CHECKPOINT_TIMESTAMP.name)
    behind = now.total(names.APPLIED_LSN.name) - now.total(names.CHECKPOINT_LSN.name)
    yield (
        f"updates: {state}   {seen.rate(names.PUSHES.name):,.0f} pushes/s   "
        f"LSN {now.total(names.APPLIED_LSN.name):.0f}   "
        f"{now.total(names.QUEUED_PUSHES.name):.0f} queued   "
        f"commit p99 {_time(seen.quantile(names.COMMIT_DURATION, 0.99))}   "
        f"log {_bytes(now.total(names.LOG_BYTES.name))}   "
        f"checkpoint {age:.0f} s ago, {behind:.0f} LSNs behind"
    )


def _procedures(seen: Between) -> Iterator[str]:
    yield f"{'WIRE':8} {'PROCEDURE':16} {'REQ/S':>9} {'FAILED/S':>9} {'P50':>9} {'P99':>9}"
    counts = seen.after.values.get(names.REQUESTS.name, {})
    pairs = sorted({(dict(key)["wire"], dict(key)["procedure"]) for key in counts})
    for wire, procedure in pairs:
        labels = {"wire": wire, "procedure": procedure}
        if not seen.after.total(names.REQUESTS.name, **labels):
            continue
        rate = seen.rate(names.REQUESTS.name, **labels)
        failed = rate - seen.rate(names.REQUESTS.name, **labels, code="ok")
        p50, p99 = (seen.quantile(names.REQUEST_DURATION, p, **labels) for p in (0.5, 0.99))
        yield (
            f"{wire:8} {procedure:16} {rate:>9,.0f} {failed:>9,.0f} {_time(p50):>9} {_time(p99):>9}"
        )


def _tables(seen: Between) -> Iterator[str]:
    yield (
        f"{'TABLE':24} {'ROWS/S':>12} {'BYTES/S':>10} {'UPDATED/S':>10} "
        f"{'SIZE':>10} {'RESIDENT':>9} {'VERSION':>8}"
    )
    for table in seen.after.label_values(names.TABLE_REFUSED.name, "table"):
        if table and seen.after.total(names.TABLE_REFUSED.name, table=table):
            yield f"{table:24} refused"
            continue
        size = seen.after.total(names.TABLE_BYTES.name, table=table)
        resident = seen.after.total(names.TABLE_RESIDENT_BYTES.name, table=table)
        yield (
            f"{table or '(all)':24} {seen.rate(names.TABLE_LOOKUP_ROWS.name, table=table):>12,.0f} "
            f"{_bytes(seen.rate(names.TABLE_LOOKUP_BYTES.name, table=table)):>10} "
            f"{seen.rate(names.TABLE_UPDATED_ROWS.name, table=table):>10,.0f} "
            f"{_bytes(size):>10} {_bytes(resident):>9} "
            f"{seen.after.total(names.TABLE_VERSION.name, table=table):>8.0f}"
        )


def _processes(seen: Between) -> Iterator[str]:
    yield (
        f"{'PROCESS':12} {'UP':>3} {'CPU':>6} {'MEMORY':>10} {'MAJOR FAULTS/S':>15} {'RESTARTS':>9}"
    )
    for process in seen.after.label_values(names.PROCESS_UP.name, "process"):
        up = "yes" if seen.after.total(names.PROCESS_UP.name, process=process) else "NO"
        yield (
            f"{process:12} {up:>3} {seen.rate(names.PROCESS_CPU.name, process=process):>6.0%} "
            f"{_bytes(seen.after.total(names.PROCESS_MEMORY.name, process=process)):>10} "
            f"{seen.rate(names.PROCESS_MAJOR_FAULTS.name, process=process):>15,.0f} "
            f"{seen.after.total(names.PROCESS_RESTARTS.name, process=process):>9.0f}"
        )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds == float("inf"):
        return "> max"
    if seconds >= 1:
        return f"{seconds:g} s"
    return f"{seconds * 1e3:g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:g} µs"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


@click.command()
@click.argument("address", required=False, metavar="")
@target_options
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="Seconds between two looks; rates and quantiles are of that time.",
)
@click.option("--once", is_flag=True, help="Print one screen after one interval, and end.")
def top(address: str | None, target: CommandTarget, interval: float, once: bool) -> None:
    """Show what a server does: requests, latencies, tables, updates, processes.

    \b
        gatherd top
        gatherd top --url http://embeddings:8000 --interval 5
        gatherd top --once > now.txt

    Quantiles are a histogram bucket's upper bound. Ctrl-C ends it.
    """
    url = addressed(target, address).url
    try:
        for before, after in pairwise(_scrapes(url, interval, once)):
            seen = Between(before, after)
            size = shutil.get_terminal_size()
            if once:
                click.echo("\n".join(frame(seen, url, 200)))
            else:
                click.echo(_CLEAR + "\n".join(frame(seen, url, size.columns)[: size.lines - 1]))
    except KeyboardInterrupt:
        click.echo()


def _scrapes(url: str, interval: float, once: bool) -> Iterator[Scrape]:
    opening, root = opener(url)
    yield _scrape(url, opening, root)
    while True:
        time.sleep(interval)
        yield _scrape(url, opening, root)
        if once:
            return
