"""The parts of a sparse file that have data: the rest reads as zeros and takes no block."""

import errno
import os
from collections.abc import Iterator


def data_ranges(fd: int, byte_count: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each part of the open file that may hold other bytes than zeros."""
    position = 0
    while position < byte_count:
        try:
            begin = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        position = min(os.lseek(fd, begin, os.SEEK_HOLE), byte_count)
        if begin >= byte_count:
            return
        yield begin, position
