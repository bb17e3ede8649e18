"""Replies to arrays: a reply is checked against its request, then viewed or copied once.

A reply that answers a whole lookup becomes the array without a copy, where its bytes are writable
and aligned; pieces of a lookup are copied straight to their place in the final array.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatherd._plans.chunks import Piece
from gatherd._requests.lookups import Answer, LookupSpec, check_dim
from gatherd._wire.lookups import DTYPE_CODES, LookupReply
from gatherd._wire.protobuf import unreadable
from gatherd.errors import Unimplemented
from gatherd.store.dtypes import bfloat16_to_float32
from gatherd.store.query import Missing


class Assembler:
    """Builds one lookup's answer from its pieces, which come in order."""

    def __init__(self, spec: LookupSpec) -> None:
        self.spec = spec
        # The version that was asked for, or else the one that answered the first piece; 0 before
        # that. Later pieces are pinned to it.
        self.version = spec.version
        self._vectors: NDArray[Any] | None = None
        self._status: NDArray[np.uint8] | None = None
        self._lsn: int | None = None

    def cut(self, piece: Piece) -> LookupSpec:
        """The lookup to send for `piece`: the whole one, in its own shape, if that is all of it."""
        return self.spec.cut(piece.start, piece.stop)

    def add(self, piece: Piece, part: LookupSpec, reply: LookupReply) -> None:
        """Take the reply to `part`, the cut of `piece`.

        InternalError when it doesn't answer what was asked.
        """
        dim = self._check(reply, part)
        data = np.frombuffer(reply.data, self.spec.reply.wire.storage)
        if part is self.spec:
            self._take_whole(reply, data, (*part.vectors_shape, dim))
        else:
            self._take_run(reply, data, piece, dim)

    def answer(self) -> Answer:
        """The arrays, once every piece was added."""
        if self._vectors is None:
            raise unreadable("it holds fewer lookups than were asked")
        return Answer(self._vectors, self._status, self.version, self._lsn)

    def _check(self, reply: LookupReply, part: LookupSpec) -> int:
        """The dim of a reply to `part`."""
        spec, shape, ids = self.spec, part.vectors_shape, part.asked.size
        where = f"table {spec.table!r}: "
        if reply.dtype != DTYPE_CODES[spec.reply.wire]:
            raise unreadable(
                f"{where}dtype {reply.dtype} isn't the {spec.reply.wire.value} asked for"
            )
        if len(reply.shape) != len(shape) + 1 or tuple(reply.shape[:-1]) != shape:
            raise unreadable(f"{where}shape {reply.shape} doesn't answer vectors of shape {shape}")
        dim = reply.shape[-1]
        if dim < 0 or math.prod(reply.shape) * spec.reply.wire.itemsize != len(reply.data):
            raise unreadable(f"{where}{len(reply.data)} bytes can't have shape {reply.shape}")
        if spec.missing is not Missing.ERROR and len(reply.status) != ids:
            raise unreadable(f"{where}{len(reply.status)} status bytes for {ids} ids")
        if self.version and reply.version != self.version:
            raise unreadable(f"{where}version {reply.version} answered, {self.version} was asked")
        self._check_notes(reply, dim)
        check_dim(spec, dim)
        self.version = reply.version
        return dim

    def _check_notes(self, reply: LookupReply, dim: int) -> None:
        """Unimplemented when an older server has overlooked what it doesn't know."""
        spec = self.spec
        form = spec.form
        overlooked = [
            name
            for name, is_done in (
                ("dims", not spec.dims or dim == spec.dims),
                ("normalize", form is None or not form.normalize or reply.normalized),
                ("return_info", not spec.with_lsn or reply.lsn is not None),
            )
            if not is_done
        ]
        if overlooked:
            raise Unimplemented(
                f"the server is older than this client, and doesn't know {', '.join(overlooked)}; "
                "update it, or leave that out"
            )
        if reply.lsn is not None:
            # Of several pieces the least: later ones may have later updates.
            self._lsn = reply.lsn if self._lsn is None else min(self._lsn, reply.lsn)

    def _take_whole(self, reply: LookupReply, data: NDArray[Any], shape: tuple[int, ...]) -> None:
        reply_type = self.spec.reply
        if self.spec.missing is not Missing.ERROR:
            status = np.frombuffer(reply.status, np.uint8)
            self._status = status.reshape(self.spec.asked.shape).copy()
        if self.spec.out is None and not reply_type.widened:
            if not (data.flags.aligned and data.flags.writeable):
                data = data.copy()
            self._vectors = _reshape(data.view(reply_type.array), shape)
            return
        self._vectors = self._target(shape)
        self._fill(self._vectors, _reshape(data, shape))

    def _take_run(self, reply: LookupReply, data: NDArray[Any], piece: Piece, dim: int) -> None:
        spec = self.spec
        if self._vectors is None:
            self._vectors = self._target((*spec.vectors_shape, dim))
            if spec.missing is not Missing.ERROR:
                self._status = np.empty(spec.asked.shape, np.uint8)
        if self._vectors.shape[-1] != dim:
            raise unreadable(f"table {spec.table!r} changed its dim within one version")
        rows = self._vectors.reshape(spec.vector_count, dim)[piece.start : piece.stop]
        self._fill(rows, data.reshape(rows.shape))
        if self._status is not None:
            begin, end = spec.first_id(piece.start), spec.first_id(piece.stop)
            self._status.reshape(-1)[begin:end] = np.frombuffer(reply.status, np.uint8)

    def _target(self, shape: tuple[int, ...]) -> NDArray[Any]:
        if self.spec.out is not None:
            return self.spec.out
        try:
            return np.empty(shape, self.spec.reply.array)
        except ValueError:
            raise unreadable(f"no array can have shape {shape}") from None

    def _fill(self, rows: NDArray[Any], data: NDArray[Any]) -> None:
        if self.spec.reply.widened:
            bfloat16_to_float32(data, rows)
        else:
            np.copyto(rows.view(data.dtype), data)


def _reshape(data: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return data.reshape(shape)
    except ValueError:
        # Zero ids take zero bytes with any dim, also with one that is too large for an array.
        raise unreadable(f"no array can have shape {shape}") from None
