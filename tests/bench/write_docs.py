"""docs/benchmarks.md and its charts, from what the last run of each part found."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.harness import Chart, Report

INTRODUCTION = """# Benchmarks

Written by `make bench`; don't edit. Everything was measured on one machine, over loopback; all
contenders took turns with the same ids, and figures are medians of several rounds. Read ratios
within a run, because the same cell varies by a factor of 1.5 from run to run. A missed mark is
shown as MISSED, with the reason. [performance.md](performance.md) explains where the time goes.
"""
PACKAGES = ("numpy", "grpcio", "uvicorn", "uvloop", "redis", "hiredis", "pyarrow", "torch")
# Distinct also in grey and for the colour-blind (Okabe and Ito); gatherd's are drawn heavier.
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#777777")
MARKERS = "os^vDP*X"


def write(results: Path, docs: Path, parts: list[str]) -> None:
    """Write both; parts without results are named as not run."""
    reports = {}
    for part in parts:
        path = results / f"{part}.json"
        if path.exists():
            reports[part] = Report.load(path), path.stat().st_mtime
    folder = docs / "benchmarks"
    folder.mkdir(exist_ok=True)
    sections = [INTRODUCTION, _machine()]
    sections.append(_summary([report for report, _ in reports.values()]))
    for report, when in reports.values():
        sections += [f"## {report.title}", report.about]
        for chart in report.charts:
            if _draw(chart, folder / f"{chart.name}.png"):
                sections.append(f"![{chart.title}](benchmarks/{chart.name}.png)")
        sections += [table.markdown() for table in report.tables]
        sections += [f"```\n{text}\n```" for text in report.verbatim]
        marks = report.mark_table()
        if marks is not None:
            sections.append(marks.markdown())
        sections += [f"Skipped: {reason}." for reason in report.skipped]
        sections.append(f"Run on {time.strftime('%Y-%m-%d', time.gmtime(when))}.")
    absent = [part for part in parts if part not in reports]
    if absent:
        sections.append(f"Not run: {', '.join(absent)}.")
    text = "\n\n".join(section.strip() for section in sections if section.strip())
    (docs / "benchmarks.md").write_text(text + "\n")
    print(f"wrote {docs / 'benchmarks.md'}")


def _machine() -> str:
    installed = []
    for name in PACKAGES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{os.cpu_count()} cores of {_processor()}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {', '.join(installed)}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _summary(reports: list[Report]) -> str:
    lines = ["| part | marks met | missed |", "| --- | --- | --- |"]
    for report in reports:
        if report.marks:
            met = sum(mark.is_met for mark in report.marks)
            lines.append(f"| {report.title} | {met} | {len(report.marks) - met} |")
    return "\n".join(lines)


def _draw(chart: Chart, path: Path) -> bool:
    """One PNG; False without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        print(f"no chart {path.name}: matplotlib isn't installed (use make bench)")
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for i, (name, values) in enumerate(chart.series.items()):
        ours, floor = name.startswith(("gatherd", "AsyncClient")), name.startswith("floor")
        axes.plot(
            chart.x,
            values,
            label=name,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=2.4 if ours else 1.3,
            linestyle=":" if floor else "-",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(chart.x, [f"{x:,.0f}" for x in chart.x])
    axes.set_xlabel("rows" if chart.name == "updates" else "ids a lookup")
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    # Without its date, so that the same figures give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return True
