"""`--durability os`: updates survive every process, and a machine that went down is noticed."""

from pathlib import Path

import numpy as np

from gatherd import Client
from gatherd.store.control import BOOT_ID_BYTES, BOOT_ID_OFFSET, CONTROL_NAME
from gatherd_server.storage.files import Files
from gatherd_server.types import Push, TableUpdate, UpdateOp, WriterLimits
from gatherd_server.writer.writer import Writer
from support.server import RunningServer, run_cli
from support.tables import drawn_table, make_data_dir

ROWS, DIM = 50, 8


def test_without_syncs_pushes_survive_every_process_but_not_the_machine(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("items", ROWS, DIM))
    arguments = ("--data-dir", str(tmp_path), "--durability", "os")
    for expected in (0, 20):
        with RunningServer(*arguments) as server:
            with Client(server.http) as client:
                assert (client.lookup("items", [1]) == expected).all()
                for _ in range(20):
                    client.scatter_add("items", [1], np.ones((1, DIM)))
            server.kill()
    boot_elsewhere(tmp_path)
    refused = run_cli("serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", *arguments,
                      check=False)  # fmt: skip
    assert refused.returncode > 1
    assert "restore the last snapshot" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_machine_may_go_down_after_a_stop_in_good_order_without_syncs(tmp_path: Path) -> None:
    make_data_dir(tmp_path, drawn_table("items", ROWS, DIM))
    limits = WriterLimits(syncs=False)
    ones = TableUpdate("items", np.array([1]), np.ones((1, DIM), np.float32))
    push = Push(UpdateOp.SCATTER_ADD, (ones,))
    for _ in range(2):
        writer = Writer(tmp_path, Files(), limits)
        assert writer.submit(push, b"").result(60).lsn
        writer.close()
        boot_elsewhere(tmp_path)
    with Client(f"local:{tmp_path}") as client:
        assert (client.lookup("items", [1]) == 2).all()


def boot_elsewhere(data_dir: Path) -> None:
    """Make it look as if the last writer ran before the machine was started."""
    with open(data_dir / CONTROL_NAME, "r+b") as control:
        control.seek(BOOT_ID_OFFSET)
        control.write(bytes(BOOT_ID_BYTES))
