"""Counters of processes that share a page."""

import os

import pytest

from gatherd_server.observe.metrics import names
from gatherd_server.observe.metrics.exposition import Sample, exposition
from gatherd_server.observe.metrics.recorder import CELLS_MAX, MetricsPage, Recorder, make_page
from gatherd_server.observe.metrics.telemetry import Telemetry


@pytest.fixture
def page() -> MetricsPage:
    fd = make_page(3)
    try:
        return MetricsPage(fd, 3)
    finally:
        os.close(fd)


def told(page: MetricsPage) -> list[str]:
    return [line for line in exposition(page.series(), []).splitlines() if line[0] != "#"]


def test_places_are_added_up(page: MetricsPage) -> None:
    for number, count in ((0, 2), (2, 5)):
        recorder = Recorder(page.place(number))
        recorder.add(names.PUSHES, "committed", value=count)
        recorder.observe(names.COMMIT_PUSHES, value=3)
        recorder.publish()
    lines = told(page)
    assert 'gatherd_pushes_total{outcome="committed"} 7' in lines
    assert 'gatherd_commit_pushes_bucket{le="2"} 0' in lines
    assert 'gatherd_commit_pushes_bucket{le="4"} 2' in lines
    assert 'gatherd_commit_pushes_bucket{le="+Inf"} 2' in lines
    assert "gatherd_commit_pushes_sum 6" in lines
    assert "gatherd_commit_pushes_count 2" in lines


def test_a_successor_goes_on_with_counters_and_begins_gauges_anew(page: MetricsPage) -> None:
    first = Recorder(page.place(1))
    first.add(names.RELOADS, "done", value=4)
    first.set(names.QUEUED_PUSHES, value=9)
    first.publish()
    first.add(names.RELOADS, "done")  # never published: lost with the process
    second = Recorder(page.place(1))
    second.add(names.RELOADS, "done")
    second.add(names.RELOADS, "refused")
    second.publish()
    lines = told(page)
    assert 'gatherd_reloads_total{outcome="done"} 5' in lines
    assert 'gatherd_reloads_total{outcome="refused"} 1' in lines
    assert "gatherd_queued_pushes 0" in lines


def test_more_series_than_there_is_room_for_are_counted_but_not_told(
    page: MetricsPage, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(page.place(0))
    for number in range(CELLS_MAX + 10):
        recorder.add(names.TABLE_LOOKUPS, f"t{number}")
    recorder.publish()
    lines = [line for line in told(page) if line.startswith("gatherd_table_lookups_total")]
    assert 1000 < len(lines) <= CELLS_MAX
    assert set(lines) == {
        f'gatherd_table_lookups_total{{table="t{n}"}} 1' for n in range(len(lines))
    }
    assert len([one for one in caplog.records if "no room for more metrics" in one.message]) == 1


def test_times_are_told_in_seconds_and_labels_escaped() -> None:
    telemetry = Telemetry()
    telemetry.requests("connect", "Lookup").done("ok", 30_000)
    telemetry.requests("connect", "Lookup").done("internal", 2_000_000)
    text = telemetry.document([Sample(names.TABLE_ROWS, ('a"b\\c\n',), 3)])
    labels = 'wire="connect",procedure="Lookup"'
    for line in (
        f'gatherd_requests_total{{{labels},code="internal"}} 1',
        f'gatherd_requests_total{{{labels},code="ok"}} 1',
        f'gatherd_request_duration_seconds_bucket{{{labels},le="2.5e-05"}} 0',
        f'gatherd_request_duration_seconds_bucket{{{labels},le="5e-05"}} 1',
        f'gatherd_request_duration_seconds_bucket{{{labels},le="0.0025"}} 2',
        f"gatherd_request_duration_seconds_sum{{{labels}}} 0.00203",
        f"gatherd_request_duration_seconds_count{{{labels}}} 2",
        'gatherd_table_rows{table="a\\"b\\\\c\\n"} 3',
        "# TYPE gatherd_request_duration_seconds histogram",
        "# TYPE gatherd_requests_total counter",
    ):
        assert line in text.splitlines(), line


def test_counters_without_labels_are_told_before_they_rise_but_gauges_are_not() -> None:
    lines = Telemetry().document([]).splitlines()
    assert "gatherd_log_written_bytes_total 0" in lines
    assert not [line for line in lines if line.startswith("gatherd_checkpoint_lsn")]
