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
    _as_is,
    _bfloat16,
    _float16,
    _like,
    _narrow,
    _number,
    inlined,
    intrinsic,
)
from gatherd_server.wire.compiled.memory import copy, pointer_to

FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = range(4)

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_Step = Callable[[Any, Any, Any], Any]


def _ints(builder: Any, value: Any, bits: Any) -> Any:
    return builder.bitcast(value, _like(value, bits))


def _widened(context: Any, builder: Any, half: Any) -> Any:
    """A float16's bits as float32."""
    kind = _like(half, _I32)
    wide = builder.zext(half, kind)
    size = builder.and_(wide, _number(kind, 0x7FFF))
    kept = builder.or_(
        builder.shl(builder.and_(wide, _number(kind, 0x8000)), _number(kind, 16)),
        builder.or_(builder.shl(size, _number(kind, 13)), _number(kind, 0xFF << 23)),
    )
    is_nan = builder.icmp_unsigned(">", size, _number(kind, 0x7C00))
    value = _float16(context, builder, half)
    return builder.bitcast(builder.select(is_nan, kept, _ints(builder, value, _I32)), value.type)


def _to_bfloat16(_: Any, builder: Any, value: Any) -> Any:
    bits = _ints(builder, value, _I32)
    kind = bits.type
    high = builder.lshr(bits, _number(kind, 16))
    odd = builder.and_(high, _number(kind, 1))
    rounded = builder.add(bits, builder.add(odd, _number(kind, 0x7FFF)))
    rounded = builder.lshr(rounded, _number(kind, 16))
    # Rounding could carry a NaN's mantissa away, so its quiet bit is set instead.
    quiet = builder.or_(high, _number(kind, 0x40))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), _like(value, _I16))


def _rounded_half(context: Any, builder: Any, value: Any) -> Any:
    """The bits of the float16 next to a float32 that isn't NaN."""
    triple, _, features = context.codegen().magic_tuple()
    if triple.startswith("aarch64") or "+f16c" in features:
        half = builder.fptrunc(value, _like(value, ir.HalfType()))
        return builder.bitcast(half, _like(value, _I16))
    # By hand, as intrinsics._to_float16 has it.
    bits = _ints(builder, value, _I32)
    kind = bits.type
    size = builder.and_(bits, _number(kind, 0x7FFFFFFF))
    magic = builder.bitcast(_number(kind, 126 << 23), value.type)
    shifted = builder.fadd(builder.bitcast(size, value.type), magic)
    small = builder.sub(_ints(builder, shifted, _I32), _number(kind, 126 << 23))
    odd = builder.and_(builder.lshr(size, _number(kind, 13)), _number(kind, 1))
    moved = builder.sub(size, _number(kind, 112 << 23))
    normal = builder.add(moved, builder.add(odd, _number(kind, 0xFFF)))
    normal = builder.lshr(normal, _number(kind, 13))
    is_small = builder.icmp_unsigned("<", size, _number(kind, 113 << 23))
    half = builder.select(is_small, small, normal)
    is_large = builder.icmp_unsigned(">=", size, _number(kind, 0x477FF000))
    half = builder.select(is_large, _number(kind, 0x7C00), half)
    sign = builder.and_(builder.lshr(bits, _number(kind, 16)), _number(kind, 0x8000))
    return builder.trunc(builder.or_(half, sign), _like(value, _I16))


def _halved(context: Any, builder: Any, value: Any, wide: Any, bits: Any, digits: int) -> Any:
    """float16's bits of a float32 `value`, made of `wide`, a float of so many mantissa `digits`."""
    sizes = _ints(builder, wide, bits)
    kind = sizes.type
    mantissa = builder.and_(sizes, _number(kind, (1 << digits) - 1))
    payload = builder.trunc(builder.lshr(mantissa, _number(kind, digits - 10)), _like(value, _I16))
    half = payload.type
    # NumPy's rule: a NaN that would lose its last bit, and become infinity, gets one.
    is_none = builder.icmp_unsigned("==", payload, _number(half, 0))
    payload = builder.select(is_none, _number(half, 1), payload)
    sign = builder.trunc(builder.lshr(sizes, _number(kind, bits.width - 16)), half)
    sign = builder.and_(sign, _number(half, 0x8000))
    kept = builder.or_(builder.or_(payload, _number(half, 0x7C00)), sign)
    is_nan = builder.fcmp_unordered("uno", wide, wide)
    return builder.select(is_nan, kept, _rounded_half(context, builder, value))


def _to_float16(context: Any, builder: Any, value: Any) -> Any:
    return _halved(context, builder, value, value, _I32, 23)


def _double_to_float16(context: Any, builder: Any, value: Any) -> Any:
    """Rounded once: to float32 towards zero, with whatever is lost told by the last bit."""
    single = _narrow(context, builder, value)
    back = builder.fpext(single, value.type)
    bits = _ints(builder, single, _I32)
    kind = bits.type

    def size(wide: Any) -> Any:
        whole = _ints(builder, wide, _I64)
        return builder.and_(whole, _number(whole.type, (1 << 63) - 1))

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
_half_to_brain = _converter(_I16, _I16, _steps(_widened, _to_bfloat16))
_brain_to_single = _converter(_I16, _FLOAT, _bfloat16)
_brain_to_half = _converter(_I16, _I16, _steps(_bfloat16, _to_float16))
_double_to_single = _converter(_DOUBLE, _FLOAT, _narrow)
_double_to_half = _converter(_DOUBLE, _I16, _double_to_float16)
# Rounded twice, as every framework does it.
_double_to_brain = _converter(_DOUBLE, _I16, _steps(_narrow, _to_bfloat16))
_single_to_half = _converter(_FLOAT, _I16, _to_float16)
_single_to_brain = _converter(_FLOAT, _I16, _steps(_as_is, _to_bfloat16))


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
