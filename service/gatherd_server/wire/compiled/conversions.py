"""Rows from one dtype to another, for the compiled answer, bit for bit as NumPy does it.

LLVM's own conversions are one instruction for many elements. What they do otherwise than NumPy is
with NaN between float16 and float32: the processor sets the quiet bit, NumPy keeps the upper bits
as they are, and so do these. Elements are at addresses, aligned or not.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # ships no type information
from numba import types
from numba.core import cgutils

from gatherd.store.kernels.intrinsics import (
    LANES,
    as_is,
    from_bfloat16,
    from_float16,
    inlined,
    intrinsic,
    ints,
    like,
    narrow,
    number,
    to_bfloat16,
    to_float16,
)
from gatherd.store.kernels.memory import copy, pointer_to

FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = range(4)

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_Step = Callable[[Any, Any, Any], Any]


def _widened(context: Any, builder: Any, half: Any) -> Any:
    """A float16's bits as float32."""
    kind = like(half, _I32)
    wide = builder.zext(half, kind)
    size = builder.and_(wide, number(kind, 0x7FFF))
    kept = builder.or_(
        builder.shl(builder.and_(wide, number(kind, 0x8000)), number(kind, 16)),
        builder.or_(builder.shl(size, number(kind, 13)), number(kind, 0xFF << 23)),
    )
    is_nan = builder.icmp_unsigned(">", size, number(kind, 0x7C00))
    value = from_float16(context, builder, half)
    return builder.bitcast(builder.select(is_nan, kept, ints(builder, value, _I32)), value.type)


def _halved(context: Any, builder: Any, value: Any, wide: Any, bits: Any, digits: int) -> Any:
    """float16's bits of a float32 `value`, made of `wide`, a float of so many mantissa `digits`."""
    sizes = ints(builder, wide, bits)
    kind = sizes.type
    mantissa = builder.and_(sizes, number(kind, (1 << digits) - 1))
    payload = builder.trunc(builder.lshr(mantissa, number(kind, digits - 10)), like(value, _I16))
    half = payload.type
    # NumPy's rule: a NaN that would lose its last bit, and become infinity, gets one.
    is_none = builder.icmp_unsigned("==", payload, number(half, 0))
    payload = builder.select(is_none, number(half, 1), payload)
    sign = builder.trunc(builder.lshr(sizes, number(kind, bits.width - 16)), half)
    sign = builder.and_(sign, number(half, 0x8000))
    kept = builder.or_(builder.or_(payload, number(half, 0x7C00)), sign)
    is_nan = builder.fcmp_unordered("uno", wide, wide)
    return builder.select(is_nan, kept, to_float16(context, builder, value))


def _single_to_float16(context: Any, builder: Any, value: Any) -> Any:
    return _halved(context, builder, value, value, _I32, 23)


def _double_to_float16(context: Any, builder: Any, value: Any) -> Any:
    """Rounded once: to float32 towards zero, with whatever is lost told by the last bit."""
    single = narrow(context, builder, value)
    back = builder.fpext(single, value.type)
    bits = ints(builder, single, _I32)
    kind = bits.type

    def size(wide: Any) -> Any:
        whole = ints(builder, wide, _I64)
        return builder.and_(whole, number(whole.type, (1 << 63) - 1))

    # The size of a float grows with its bits, so one less is the next one towards zero.
    is_over = builder.icmp_unsigned(">", size(back), size(value))
    bits = builder.sub(bits, builder.zext(is_over, kind))
    is_inexact = builder.fcmp_ordered("one", back, value)
    bits = builder.or_(bits, builder.zext(is_inexact, kind))
    return _halved(context, builder, builder.bitcast(bits, single.type), value, _I64, 52)


def _steps(*steps: _Step) -> _Step:
    def convert(context: Any, builder: Any, value: Any) -> Any:
        for step in steps:
            value = step(context, builder, value)
        return value

    return convert


def _converter(source: Any, target: Any, step: _Step) -> Any:
    """An intrinsic: convert so many elements from one address to another."""

    def convert(_context: Any, _begin: Any, _to: Any, _count: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            begin, to, count = args

            def loop(first: Any, stop: Any, lanes: int) -> None:
                many, made = (
                    ir.VectorType(kind, lanes) if lanes > 1 else kind for kind in (source, target)
                )
                step_by = ir.Constant(count.type, lanes)
                with cgutils.for_range_slice(builder, first, stop, step_by) as (i, _):
                    place = builder.gep(pointer_to(builder, begin, source), [i])
                    raw = builder.load(builder.bitcast(place, many.as_pointer()), align=1)
                    value = step(context, builder, raw)
                    place = builder.gep(pointer_to(builder, to, target), [i])
                    value = builder.bitcast(value, made)
                    builder.store(value, builder.bitcast(place, made.as_pointer()), align=1)

            whole = builder.and_(count, ir.Constant(count.type, -LANES))
            loop(ir.Constant(count.type, 0), whole, LANES)
            loop(whole, count, 1)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp), generate

    return intrinsic(convert)


_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()

_half_to_single = _converter(_I16, _FLOAT, _widened)
_half_to_brain = _converter(_I16, _I16, _steps(_widened, to_bfloat16))
_brain_to_single = _converter(_I16, _FLOAT, from_bfloat16)
_brain_to_half = _converter(_I16, _I16, _steps(from_bfloat16, _single_to_float16))
_double_to_single = _converter(_DOUBLE, _FLOAT, narrow)
_double_to_half = _converter(_DOUBLE, _I16, _double_to_float16)
# Rounded twice, as every framework does it.
_double_to_brain = _converter(_DOUBLE, _I16, _steps(narrow, to_bfloat16))
_single_to_half = _converter(_FLOAT, _I16, _single_to_float16)
_single_to_brain = _converter(_FLOAT, _I16, _steps(as_is, to_bfloat16))


@inlined
def convert(stored: Any, reply: Any, begin: Any, to: Any, count: Any) -> None:  # a table of nine
    """Convert elements of kind `stored` to kind `reply`, which isn't FLOAT64."""
    if stored == FLOAT32:
        if reply == FLOAT16:
            _single_to_half(begin, to, count)
        elif reply == BFLOAT16:
            _single_to_brain(begin, to, count)
        else:
            copy(to, begin, 4 * count)
    elif stored == FLOAT16:
        if reply == FLOAT32:
            _half_to_single(begin, to, count)
        elif reply == BFLOAT16:
            _half_to_brain(begin, to, count)
        else:
            copy(to, begin, 2 * count)
    elif stored == BFLOAT16:
        if reply == FLOAT32:
            _brain_to_single(begin, to, count)
        elif reply == FLOAT16:
            _brain_to_half(begin, to, count)
        else:
            copy(to, begin, 2 * count)
    elif reply == FLOAT32:
        _double_to_single(begin, to, count)
    elif reply == FLOAT16:
        _double_to_half(begin, to, count)
    else:
        _double_to_brain(begin, to, count)
