"""Each alert can fire, on what a server tells; each error class has its metric, line and alert."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gatherd.errors import (
    ClientError,
    DiskFull,
    GatherdError,
    IdOutOfRange,
    InternalError,
    StorageError,
)
from gatherd_server.errors import StartError
from gatherd_server.observe.metrics.failures import MESSAGE_CHARS_MAX, SILENT, Failures, level_of
from gatherd_server.observe.metrics.names import BY_NAME, ERRORS, MetricKind
from gatherd_server.observe.metrics.recorder import Recorder
from support import alerts
from support.error_classes import ERROR_CLASSES

DOCUMENT = Path(__file__).parent.parent.parent / "docs/operations.md"
# What ends a command or a start; no request is answered with it.
LOCAL = (ClientError, StartError)


def rules() -> dict[str, str]:
    """Each alert's expression."""
    (group,) = yaml.safe_load(alerts.RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def cases() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(alerts.CASES.read_text())["tests"]
    return found


def expected(case: dict[str, Any]) -> set[str]:
    (test,) = case["promql_expr_test"]
    return {re.findall(r'"(\w+)"', sample["labels"])[0] for sample in test["exp_samples"]}


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    fired = {alert for case in cases() for alert in expected(case)}
    assert fired == rules().keys()
    assert any(not expected(case) for case in cases()), "and there is one in which none does"


def test_the_cases_are_of_series_that_there_are() -> None:
    for case in cases():
        for one in case["input_series"]:
            name, labels = re.fullmatch(r"(\w+)\{(.*)\}", one["series"]).groups()  # type: ignore[union-attr]
            given = set(re.findall(r"(\w+)=", labels)) - {"instance", "job"}
            if name == "up":
                continue
            metric = BY_NAME[name.removesuffix("_bucket")]
            own = {"le"} if metric.kind is MetricKind.HISTOGRAM else set()
            assert given == {*metric.labels, *own}, one["series"]


@pytest.mark.skipif(alerts.promtool() is None, reason=alerts.NO_PROMTOOL)
def test_prometheus_finds_each_case_as_it_is_expected() -> None:
    assert alerts.verdict(alerts.CASES) == ""


def test_reasons_in_rules_are_reasons_of_errors() -> None:
    reasons = {cls.reason for cls in ERROR_CLASSES if not issubclass(cls, LOCAL)}
    named = [
        reason
        for expression in rules().values()
        for given in re.findall(r'reason=~?"([^"]+)"', expression)
        for reason in given.split("|")
    ]
    assert named
    assert set(named) <= reasons


# The table of errors


def documented() -> dict[str, tuple[str, str, str]]:
    """By class, its reason, the level of its line, and the alerts that tell of it."""
    rows = re.findall(
        r"^\| `(\w+)` \| `([A-Z_]+)` \| (\w+|–) \| (.+?) \|", DOCUMENT.read_text(), re.MULTILINE
    )
    return {name: (reason, level, told) for name, reason, level, told in rows}


def test_every_error_class_has_its_row() -> None:
    assert list(documented()) == [cls.__name__ for cls in ERROR_CLASSES]


@pytest.mark.parametrize("cls", ERROR_CLASSES, ids=lambda cls: cls.__name__)
def test_a_row_says_what_is_so(cls: type[GatherdError]) -> None:
    reason, level, told = documented()[cls.__name__]
    assert reason == cls.reason
    named = re.findall(r"`(Gatherd\w+)`", told)
    assert set(named) <= rules().keys()
    if cls is InternalError:
        assert level == "error"  # with its traceback, by `unexpected`
    else:
        found = level_of(cls)
        assert level == ("–" if found == SILENT else logging.getLevelName(found).lower())
    if issubclass(cls, LOCAL):
        return
    if level in ("error", "warning"):
        assert named, "who has to act on it has to hear of it"
    for alert in named:
        by_reason = re.findall(r'reason=~?"([^"]+)"', rules()[alert])
        assert not by_reason or any(cls.reason in one.split("|") for one in by_reason), alert


def test_what_fails_without_a_request_names_metrics_and_alerts_that_there_are() -> None:
    text = DOCUMENT.read_text()
    begin = text.index("Failures without a request:")
    table = text[begin : text.index("\n## ", begin)]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)[1:]
    assert len(rows) == table.count("\n| ") - 1
    for _, metrics, _, told in rows:
        assert set(re.findall(r"gatherd_\w+", metrics)) <= BY_NAME.keys()
        assert set(re.findall(r"Gatherd\w+", told)) <= rules().keys()


# Counting and logging


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    found = [(one.levelno, one.getMessage()) for one in caplog.records]
    caplog.clear()
    return found


def test_a_class_has_one_line_a_second_and_the_rest_is_counted_in_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, recorder = Clock(), Recorder()
    failures = Failures(recorder, clock)
    for number in range(1000):
        failures.note(DiskFull(f"/data: the disk is full {number}"))
        failures.note(StorageError("/data: I/O error"))
    assert lines(caplog) == [
        (logging.ERROR, "DISK_FULL: /data: the disk is full 0"),
        (logging.ERROR, "STORAGE: /data: I/O error"),
    ]
    failures.flush()
    assert not lines(caplog), "a second hasn't passed"
    clock.now += 1
    failures.flush()
    assert lines(caplog) == [
        (logging.ERROR, "DISK_FULL: /data: the disk is full 999 (998 more like it)"),
        (logging.ERROR, "STORAGE: /data: I/O error (998 more like it)"),
    ]
    clock.now += 1
    failures.flush()
    assert not lines(caplog), "nothing came since"


def test_all_are_counted_and_each_from_zero_on() -> None:
    recorder = Recorder()
    failures = Failures(recorder)
    recorder.publish()
    told = {labels[0]: cells[0] for metric, labels, cells in recorder.series() if metric is ERRORS}
    assert told == {cls.reason: 0 for cls in ERROR_CLASSES if not issubclass(cls, LOCAL)}
    for _ in range(3):
        failures.note(IdOutOfRange("id 7 has no row"))
    recorder.publish()
    told = {labels[0]: cells[0] for metric, labels, cells in recorder.series() if metric is ERRORS}
    assert told["ID_OUT_OF_RANGE"] == 3
    assert sum(told.values()) == 3


def test_what_the_asker_has_to_mend_is_no_line(caplog: pytest.LogCaptureFixture) -> None:
    Failures(Recorder()).note(IdOutOfRange("id 7 has no row"))
    assert not lines(caplog)


def test_a_message_is_one_line_and_not_a_long_one(caplog: pytest.LogCaptureFixture) -> None:
    Failures(Recorder()).note(StorageError("/data/a\nERROR forged: " + "x" * 10_000))
    ((_, line),) = lines(caplog)
    assert "\n" not in line
    assert len(line) <= MESSAGE_CHARS_MAX + len("STORAGE: ")
