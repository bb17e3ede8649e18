"""The compiled answer of a table that another process writes as fast as it can has no torn row."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.store.catalog import version_dir
from gatherd.store.kernels import compiled
from gatherd.store.limits import LIVE_VERSION
from gatherd.store.live import LiveTables
from gatherd_proto.v1 import embedding_pb2
from gatherd_server.wire.compiled.answers import LOOKUP, LOOKUP_BAGS, NOT_MINE, Answers
from gatherd_server.wire.compiled.directory import Directory
from support.answering import LIMITS
from support.request_bytes import tensor
from support.small_engine import lookup_request
from support.tables import drawn_table, make_data_dir

WRITER = Path(__file__).parents[1] / "support/row_writer.py"
ROWS, DIM = 2048, 200
BATCH, BATCHES = 512, 60
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A process that stores into the version's rows for the length of a `with` block."""
    process = subprocess.Popen(
        [sys.executable, WRITER, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "storing\n"
        yield
        assert process.poll() is None
        process.stdin.close()
        assert int(process.stdout.readline()) >= ROWS
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def requests(ids: NDArray[np.int64]) -> Iterator[tuple[int, int, bytes]]:
    """Each a message, the number of its reply's dtype, and its bytes."""
    for dtype in ("DTYPE_FLOAT32", "DTYPE_FLOAT16", "DTYPE_BFLOAT16"):
        lookup = lookup_request("rows", ids, dtype=dtype)
        yield LOOKUP, lookup.dtype, lookup.SerializeToString()
        for pooling in ("POOLING_SUM", "POOLING_MAX"):
            # A bag of a row, for a sum of more would hide that one was torn.
            bags = embedding_pb2.LookupBagsRequest(
                lookup=lookup, offsets=tensor(np.arange(ids.size)), pooling=pooling
            )
            yield LOOKUP_BAGS, lookup.dtype, bags.SerializeToString()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_answer_has_a_torn_row(tmp_path: Path, dtype: str) -> None:
    make_data_dir(tmp_path, drawn_table("rows", ROWS, DIM, dtype=dtype))
    compiled.warm()
    live = LiveTables(tmp_path)
    live.take([("rows", LIVE_VERSION)])
    answers = Answers(LIMITS, takes_far=True)
    directory = Directory(live.current())
    answers.use(directory)
    out = np.zeros(1 << 20, np.uint8)
    answers.write_to(out)
    random = np.random.default_rng(1)
    answered = asked = 0
    with writing(version_dir(tmp_path, "rows", 1)):
        for _ in range(BATCHES):
            for message, reply, body in requests(random.integers(0, ROWS, BATCH)):
                asked += 1
                length = answers.answer(message, body)
                if length == NOT_MINE:
                    continue
                answered += 1
                response = embedding_pb2.LookupResponse.FromString(out[:length].tobytes())
                vectors = np.frombuffer(response.vectors.data, DTYPES[reply - 1])
                vectors = vectors.reshape(BATCH, DIM)
                assert not (vectors != vectors[:, :1]).any()
    # A row stays torn while its writer has lost its core.
    assert answered > 0.5 * asked
