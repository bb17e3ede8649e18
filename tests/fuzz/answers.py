"""The compiled answer and the general way, fed the same bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

from fuzz.target import Target
from support.answering import CLASSES, two_ways
from support.request_bytes import Asking, encoded

SEEDS = 60


@contextmanager
def targets(folder: Path) -> Iterator[list[Target]]:
    """One for each message; `folder` holds the tables."""
    ways = two_ways(folder)
    yield [
        Target(
            f"compiled {kind.DESCRIPTOR.name}",
            _seeds(Asking(ways.row_counts, ways.keys, Random(message)), message),
            partial(ways.same, message),
        )
        for message, kind in CLASSES.items()
    ]


def _seeds(asking: Asking, message: int) -> list[bytes]:
    """Requests as protobuf writes them, as odd encoders do, and ones with mistakes in them."""
    drawn = [asking.request(message, is_sound=number % 3 > 0) for number in range(SEEDS)]
    return [
        encoded(request, asking.random, asking.random.choice([0, 0.02, 0.2])) for request in drawn
    ]
