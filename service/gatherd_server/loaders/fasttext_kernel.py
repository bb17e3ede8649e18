"""The compiled loop that finds n-grams of words. fasttext.py imports it when it needs it."""

from typing import Any

import numpy as np
from numba import types

from gatherd_server.loaders.text_kernel import compiled

_FNV_OFFSET = np.uint32(2166136261)
_FNV_PRIME = np.uint32(16777619)
_READONLY = types.Array(types.int64, 1, "C", readonly=True)


@compiled(
    types.int64(
        types.Array(types.uint8, 1, "C", readonly=True),
        _READONLY,
        types.int64,
        types.int64,
        types.int64,
        types.Array(types.int64, 1, "C"),
        types.Array(types.int64, 1, "C"),
    )
)
def find_ngrams(
    text: Any, offsets: Any, minn: int, maxn: int, bucket_count: int, buckets: Any, counts: Any
) -> int:
    """Find the buckets of each word's n-grams of `minn` to `maxn` characters, as fastText does.

    Word i is `text[offsets[i]:offsets[i + 1]]`, UTF-8, with "<" before and ">" after it. Fills
    `buckets`, int64 (m,), with the buckets of one word after the other, and `counts`, int64 (n,),
    with their number for each word; returns their total. fastText's Dictionary::computeSubwords
    and Dictionary::hash do the same: FNV-1a over bytes that are signed.
    """
    total = 0
    for word in range(offsets.size - 1):
        begin, end = offsets[word], offsets[word + 1]
        before = total
        for start in range(begin, end):
            if text[start] & 0xC0 == 0x80:
                continue
            hashed = _FNV_OFFSET
            at = start
            length = 0
            while at < end and length < maxn:
                length += 1
                while True:
                    byte = np.uint32(text[at])
                    if byte >= 128:
                        byte |= np.uint32(0xFFFFFF00)
                    hashed = np.uint32((hashed ^ byte) * _FNV_PRIME)
                    at += 1
                    if at >= end or text[at] & 0xC0 != 0x80:
                        break
                if length >= minn and not (length == 1 and (start == begin or at == end)):
                    buckets[total] = np.int64(hashed) % bucket_count
                    total += 1
        counts[word] = total - before
    return total
