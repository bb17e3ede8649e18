"""With `metrics_per_table` off, /metrics has the sums of all tables, and no name."""

from pathlib import Path

import httpx
import numpy as np

from gatherd import Client
from gatherd_server.cli.top import Scrape
from support.server import RunningServer, run_cli, wait_until
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 10, 4


def test_all_tables_count_as_one(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    for name in ("alpha", "beta"):
        make_data_dir(data_dir, drawn_table(name, ROWS, DIM, optimizer="sgd"))
    with RunningServer(
        "--data-dir",
        data_dir,
        "--workers",
        "2",
        "--no-metrics-per-table",
        log_path=tmp_path / "log",
    ) as server:

        def scraped() -> str:
            return httpx.get(f"{server.http}/metrics").raise_for_status().text

        def total(name: str) -> float:
            return Scrape.parse(scraped(), 0.0).total(f"gatherd_{name}")

        with Client(server.http) as client:
            for table in ("alpha", "beta", "beta"):
                client.lookup(table, [1, 2])
            client.lookup_many({"alpha": [1], "beta": [2]})
            client.lookup("alpha", [1, -1], missing="zero")
            for table in ("alpha", "beta"):
                client.scatter_add(table, [1, 2, 3], np.ones((3, DIM), np.float32))
            wait_until(lambda: total("table_updated_rows_total") == 6, "the writer has published")
            wait_until(lambda: total("table_lookups_total") == 6, "the workers have published")
            assert total("table_lookup_rows_total") == 10
            assert total("table_lookup_bytes_total") == 10 * DIM * 4
            assert total("table_missing_total") == 1
            assert total("tables") == 2
            assert total("table_rows") == 2 * ROWS
            assert total("table_bytes") == 2 * ROWS * DIM * 4
            assert total("table_refused") == 0
            assert total("table_version") == 0
            before = scraped()
            client.create_table("gamma", ROWS, DIM)
            client.lookup("gamma", [1])
            wait_until(lambda: total("table_lookups_total") == 7, "the lookup is counted")
        assert total("tables") == 3
        shown = scraped()
        assert not any(name in shown for name in ("alpha", "beta", "gamma", "table="))
        created = [line for line in shown.splitlines() if "CreateTable" in line]
        assert len(shown.splitlines()) == len(before.splitlines()) + len(created)
        top = run_cli("top", server.http, "--interval", "0.2", "--once").stdout
        assert "(all)" in top
