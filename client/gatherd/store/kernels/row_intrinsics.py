"""Intrinsics that copy whole rows, and those for the counters of rows that change.

store/stripes.py explains the counters. A fence keeps LLVM from moving any memory access across it;
on x86 it costs nothing more, on ARM it is a barrier.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # ships no type information
from numba import types
from numba.core import cgutils

from gatherd.store.kernels.intrinsics import byte_pointer, intrinsic

_I32 = ir.IntType(32)


def _word_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(builder.bitcast(data, _I32.as_pointer()), [index])


def _copy(builder: Any, target: Any, source: Any, byte_count: Any) -> None:
    cgutils.raw_memcpy(builder, target, source, byte_count, 1)  # type: ignore[no-untyped-call]  # numba's gap


@intrinsic
def load_counter(_context: Any, counters: Any, _stripe: Any) -> Any:
    """The counter of a stripe, from one load that LLVM neither repeats nor omits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _word_pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load_atomic(pointer, "monotonic", 4)

    return types.uint32(counters, types.intp), generate


def _counter_store(is_begin: bool) -> Any:
    def store(_context: Any, counters: Any, _stripe: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _word_pointer(context, builder, signature.args[0], args[0], args[1])
            if is_begin:
                builder.store_atomic(args[2], pointer, "monotonic", 4)
                builder.fence("release")
            else:
                builder.store_atomic(args[2], pointer, "release", 4)
            return context.get_dummy_value()

        return types.void(counters, types.intp, types.uint32), generate

    return intrinsic(store)


begin_row = _counter_store(is_begin=True)
"""Store an odd counter: no later store comes before it."""
end_row = _counter_store(is_begin=False)
"""Store an even counter: it comes after every earlier store."""


@intrinsic
def copy_bytes(
    _context: Any, target: Any, _to: Any, source: Any, _begin: Any, _byte_count: Any
) -> Any:
    """Copy bytes from a position of `source` to one of `target`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to = byte_pointer(context, builder, signature.args[0], args[0], args[1])
        begin = byte_pointer(context, builder, signature.args[2], args[2], args[3])
        _copy(builder, to, begin, args[4])
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate


@intrinsic
def copy_whole(
    _context: Any,
    rows: Any,
    _begin: Any,
    _byte_count: Any,
    counters: Any,
    _stripe: Any,
    scratch: Any,
    _to: Any,
) -> Any:
    """Copy a row to scratch; return whether it is whole: its counter was even and didn't change."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args
        counter = _word_pointer(context, builder, kinds[3], args[3], args[4])
        begin = byte_pointer(context, builder, kinds[0], args[0], args[1])
        to = byte_pointer(context, builder, kinds[5], args[5], args[6])
        before = builder.load_atomic(counter, "acquire", 4)
        _copy(builder, to, begin, args[2])
        builder.fence("acquire")
        after = builder.load_atomic(counter, "monotonic", 4)
        is_even = builder.icmp_unsigned("==", builder.and_(before, _I32(1)), _I32(0))
        return builder.and_(is_even, builder.icmp_unsigned("==", before, after))

    kinds = (rows, types.intp, types.intp, counters, types.intp, scratch, types.intp)
    return types.boolean(*kinds), generate


@intrinsic
def touch(_context: Any, array: Any, _position: Any) -> Any:
    """Store the byte at a position again, so that its page is in memory and writable."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = byte_pointer(context, builder, signature.args[0], args[0], args[1])
        # Atomic, because LLVM drops a plain store of a value just loaded.
        value = builder.load_atomic(
            builder.bitcast(pointer, ir.IntType(8).as_pointer()), "monotonic", 1
        )
        builder.store_atomic(
            value, builder.bitcast(pointer, ir.IntType(8).as_pointer()), "monotonic", 1
        )
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def fence_loads(_context: Any) -> Any:
    """No load moves across this fence, and no later store moves before it."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        builder.fence("acquire")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def fence_stores(_context: Any) -> Any:
    """No store moves across this fence, and no earlier load moves behind it."""

    def generate(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), generate
