"""Intrinsics and types for the compiled kernels, where numba has gaps.

numba knows neither float16 nor bfloat16 on a CPU, and assumes that arrays are aligned. So elements
are loaded by intrinsics, from a byte position, with an alignment of 1. row_intrinsics.py has those
that copy whole rows or use the counters of rows that change.

numba's cache checks only a kernel's own file for changes: after a change of this file, touch the
kernels' files or remove the cached ones.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]  # ships no type information
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaError
from numba.extending import intrinsic as _untyped_intrinsic

# Floats that a span adder adds at once, and floats in one vector.
SPAN = 64
LANES = 16

_I16, _I32 = ir.IntType(16), ir.IntType(32)

_F = TypeVar("_F", bound=Callable[..., Any])


def read(dtype: Any, ndim: int = 1) -> Any:
    """The type of an array argument that is only read; read-only and writable ones fit."""
    return types.Array(dtype, ndim, "C", readonly=True)


def write(dtype: Any, ndim: int = 1) -> Any:
    """The type of an array argument that is written."""
    return types.Array(dtype, ndim, "C")


def kernel(*arguments: Any, returns: Any = types.void) -> Callable[[_F], _F]:
    """Compile a function for just these argument types, or load it from numba's cache."""
    signature = returns(*arguments)

    def decorate(function: _F) -> _F:
        options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}}
        try:
            compiled: _F = numba.njit(signature, cache=True, **options)(function)
        except NumbaError:
            raise
        except Exception:  # noqa: BLE001  # numba's cache fails in every way a file system can
            # No folder to write to, a full disk, a damaged file: only the start is slower.
            compiled = numba.njit(signature, **options)(function)
        return compiled

    return decorate


def inlined(function: _F) -> _F:
    """Mark a function that is compiled into each kernel that calls it."""
    part: Any = numba.njit(fastmath={"contract"}, nogil=True, forceinline=True)(function)
    return cast(_F, part)


def intrinsic(function: Callable[..., Any]) -> Any:
    """An operation; the decorated function returns the generator of its LLVM code."""
    # numba passes the typing context.
    made: Any = _untyped_intrinsic(function)
    return made


def byte_pointer(context: Any, builder: Any, array_type: Any, array: Any, position: Any) -> Any:
    """For intrinsics: LLVM's pointer to the byte at a position of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    data = builder.bitcast(data, cgutils.voidptr_t)
    return builder.gep(data, [position])


def _loader(bits: Any, result: Any, widen: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic: the element of LLVM type `bits` at a byte position, widened to `result`."""

    def load(_context: Any, array: Any, _position: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = byte_pointer(context, builder, signature.args[0], args[0], args[1])
            value = builder.load(builder.bitcast(pointer, bits.as_pointer()))
            value.align = 1
            return widen(context, builder, value)

        return result(array, types.intp), generate

    return intrinsic(load)


def like(value: Any, scalar: Any) -> Any:
    """`scalar`, or a vector of as many of it as `value` has lanes."""
    kind = value.type
    return ir.VectorType(scalar, kind.count) if isinstance(kind, ir.VectorType) else scalar


def number(kind: Any, value: int) -> Any:
    """A constant of an integer type, or of a vector's every lane."""
    lanes = isinstance(kind, ir.VectorType)
    return ir.Constant(kind, [value] * kind.count if lanes else value)


def as_is(_: Any, _builder: Any, value: Any) -> Any:
    """No conversion at all, where one is asked for."""
    return value


def narrow(_: Any, builder: Any, value: Any) -> Any:
    """A float64 as float32."""
    return builder.fptrunc(value, like(value, ir.FloatType()))


def from_bfloat16(_: Any, builder: Any, value: Any) -> Any:
    """A bfloat16's bits as float32."""
    kind = like(value, ir.IntType(32))
    wide = builder.shl(builder.zext(value, kind), number(kind, 16))
    return builder.bitcast(wide, like(value, ir.FloatType()))


def from_float16(context: Any, builder: Any, value: Any) -> Any:
    """A float16's bits as float32; which NaN a NaN becomes is up to the processor."""
    triple, _, features = context.codegen().magic_tuple()
    result = like(value, ir.FloatType())
    if triple.startswith("aarch64") or "+f16c" in features:
        return builder.fpext(builder.bitcast(value, like(value, ir.HalfType())), result)
    # On a processor without the instruction LLVM calls a C function that doesn't exist, and aborts.
    # So by hand, after Giesen, "Half to float done quick" (2012): the exponent is moved by
    # 127 − 15, once more for infinity and NaN; a subtraction makes subnormals normal.
    kind = like(value, ir.IntType(32))
    wide = builder.zext(value, kind)
    moved = builder.shl(builder.and_(wide, number(kind, 0x7FFF)), number(kind, 13))
    exponent = builder.and_(moved, number(kind, 0x7C00 << 13))
    moved = builder.add(moved, number(kind, 112 << 23))
    special = builder.icmp_unsigned("==", exponent, number(kind, 0x7C00 << 13))
    normal = builder.select(special, builder.add(moved, number(kind, 112 << 23)), moved)
    smallest = builder.bitcast(number(kind, 113 << 23), result)
    small = builder.bitcast(builder.add(moved, number(kind, 1 << 23)), result)
    small = builder.bitcast(builder.fsub(small, smallest), kind)
    subnormal = builder.icmp_unsigned("==", exponent, number(kind, 0))
    sign = builder.shl(builder.and_(wide, number(kind, 0x8000)), number(kind, 16))
    bits = builder.or_(builder.select(subnormal, small, normal), sign)
    return builder.bitcast(bits, result)


load_u64 = _loader(ir.IntType(64), types.uint64, as_is)
load_float32 = _loader(ir.FloatType(), types.float32, as_is)
load_float16 = _loader(ir.IntType(16), types.float32, from_float16)
load_bfloat16 = _loader(ir.IntType(16), types.float32, from_bfloat16)
load_float64 = _loader(ir.DoubleType(), types.float32, narrow)


def _local(builder: Any, kind: Any) -> Any:
    return cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]  # numba's gap


def _span_adder(bits: Any, widen: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic: add weighted rows to SPAN floats, which stay in registers meanwhile.

    It takes (rows, begins, weights, count, skip, out, begin). To the floats of `out` from element
    `begin` on it adds weights[i] × the elements of LLVM type `bits` from byte begins[i] + skip on,
    for i = 0 … count − 1. LLVM's own vectorizer gives up on a loop over several rows at once.
    """
    lanes, many = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(bits, LANES)
    stride = LANES * (bits.width if isinstance(bits, ir.IntType) else _FLOAT_BITS[str(bits)]) // 8

    def at(builder: Any, pointer: Any, position: Any, kind: Any) -> Any:
        return builder.bitcast(builder.gep(pointer, [position]), kind.as_pointer())

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args, args, strict=True)
            if isinstance(kind, types.Array)
        ]
        rows, begins, weights, out = arrays
        rows = builder.bitcast(rows, cgutils.voidptr_t)
        count, skip, begin = args[3], args[4], args[6]
        sums = [_local(builder, lanes) for _ in range(SPAN // LANES)]
        places = []
        for k, total in enumerate(sums):
            element = builder.add(begin, ir.Constant(begin.type, k * LANES))
            places.append(at(builder, out, element, lanes))
            builder.store(builder.load(places[k], align=4), total)
        with cgutils.for_range(builder, count) as loop:
            start = builder.add(builder.load(builder.gep(begins, [loop.index])), skip)
            weight = builder.load(builder.gep(weights, [loop.index]))
            first = builder.insert_element(ir.Constant(lanes, ir.Undefined), weight, _I32(0))
            mask = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
            by = builder.shuffle_vector(first, ir.Constant(lanes, ir.Undefined), mask)
            for k, total in enumerate(sums):
                position = builder.add(start, ir.Constant(start.type, k * stride))
                raw = builder.load(at(builder, rows, position, many), align=1)
                product = builder.fmul(widen(context, builder, raw), by, flags=("contract",))
                added = builder.fadd(builder.load(total), product, flags=("contract",))
                builder.store(added, total)
        for place, total in zip(places, sums, strict=True):
            builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    def add(
        _context: Any,
        rows: Any,
        begins: Any,
        weights: Any,
        _count: Any,
        _skip: Any,
        out: Any,
        _begin: Any,
    ) -> Any:
        arguments = (rows, begins, weights, types.intp, types.intp, out, types.intp)
        return types.void(*arguments), generate

    return intrinsic(add)


_FLOAT_BITS = {"float": 32, "double": 64}

add_float32 = _span_adder(ir.FloatType(), as_is)
add_float16 = _span_adder(ir.IntType(16), from_float16)
add_bfloat16 = _span_adder(ir.IntType(16), from_bfloat16)
add_float64 = _span_adder(ir.DoubleType(), narrow)


@intrinsic
def prefetch(_context: Any, array: Any, _position: Any) -> Any:
    """Prefetch the cache line at a byte position; harmless anywhere."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = byte_pointer(context, builder, signature.args[0], args[0], args[1])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]  # numba's gap
            builder.module, kind, "llvm.prefetch.p0i8"
        )
        builder.call(function, [pointer, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _storer(bits: Any, narrow: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic: round a float32 to the LLVM type `bits` and put it at a byte position."""

    def store(_context: Any, array: Any, _position: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = byte_pointer(context, builder, signature.args[0], args[0], args[1])
            value = narrow(context, builder, args[2])
            builder.store(value, builder.bitcast(pointer, bits.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.float32), generate

    return intrinsic(store)


def ints(builder: Any, value: Any, bits: Any) -> Any:
    """The bits of a value, or of each lane, as integers of LLVM type `bits`."""
    return builder.bitcast(value, like(value, bits))


def to_bfloat16(_: Any, builder: Any, value: Any) -> Any:
    """A float32's bits as bfloat16."""
    bits = ints(builder, value, _I32)
    kind = bits.type
    high = builder.lshr(bits, number(kind, 16))
    odd = builder.and_(high, number(kind, 1))
    rounded = builder.add(bits, builder.add(odd, number(kind, 0x7FFF)))
    rounded = builder.lshr(rounded, number(kind, 16))
    # Rounding could clear a NaN's mantissa, so its quiet bit is set instead.
    quiet = builder.or_(high, number(kind, 0x40))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), like(value, _I16))


def to_float16(context: Any, builder: Any, value: Any) -> Any:
    """A float32's bits as float16; which NaN a NaN becomes is up to the processor."""
    triple, _, features = context.codegen().magic_tuple()
    if triple.startswith("aarch64") or "+f16c" in features:
        half = builder.fptrunc(value, like(value, ir.HalfType()))
        return builder.bitcast(half, like(value, _I16))
    # By hand, as in from_float16. For values under 2**-14 an addition shifts and rounds the
    # mantissa: one unit in the last place of 0.5 is the smallest half.
    bits = ints(builder, value, _I32)
    kind = bits.type
    size = builder.and_(bits, number(kind, 0x7FFFFFFF))
    magic = builder.bitcast(number(kind, 126 << 23), value.type)
    shifted = builder.fadd(builder.bitcast(size, value.type), magic)
    small = builder.sub(ints(builder, shifted, _I32), number(kind, 126 << 23))
    odd = builder.and_(builder.lshr(size, number(kind, 13)), number(kind, 1))
    moved = builder.sub(size, number(kind, 112 << 23))
    normal = builder.add(moved, builder.add(odd, number(kind, 0xFFF)))
    normal = builder.lshr(normal, number(kind, 13))
    # 65,520 is the first value that rounds to 65,536, which is infinity.
    is_large = builder.icmp_unsigned(">=", size, number(kind, 0x477FF000))
    is_nan = builder.icmp_unsigned(">", size, number(kind, 0xFF << 23))
    is_small = builder.icmp_unsigned("<", size, number(kind, 113 << 23))
    half = builder.select(is_small, small, normal)
    half = builder.select(is_large, number(kind, 0x7C00), half)
    half = builder.select(is_nan, number(kind, 0x7E00), half)
    sign = builder.and_(builder.lshr(bits, number(kind, 16)), number(kind, 0x8000))
    return builder.trunc(builder.or_(half, sign), like(value, _I16))


# They round to nearest, ties to even; a value that is too large becomes infinity.
store_float32 = _storer(ir.FloatType(), as_is)
store_float16 = _storer(ir.IntType(16), to_float16)
store_bfloat16 = _storer(ir.IntType(16), to_bfloat16)


@intrinsic
def divide(_context: Any, a: Any, b: Any) -> Any:
    """The quotient of IEEE 754; numba's own raises at zero, which prevents vectorization."""

    def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fdiv(args[0], args[1])

    if a == b and a in (types.float32, types.float64):
        return a(a, b), generate
    return None


def _bit_cast(source: Any, target: Any) -> Any:
    """An intrinsic: the bits of a 64-bit `source` as a `target`."""
    result = ir.DoubleType() if target is types.float64 else ir.IntType(64)

    def cast_bits(_context: Any, value: Any) -> Any:
        def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], result)

        return (target(source), generate) if value == source else None

    return intrinsic(cast_bits)


bits_of = _bit_cast(types.float64, types.uint64)
float_of = _bit_cast(types.uint64, types.float64)


@intrinsic
def larger_size(_context: Any, _bits: Any, _value: Any) -> Any:
    """The larger of `bits` and the bits of a float32 without its sign, as uint32.

    Accumulated over a row, it shows whether a value reaches some size; NaN is above infinity.
    """

    def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
        size = builder.and_(builder.bitcast(args[1], _I32), _I32(0x7FFFFFFF))
        return builder.select(builder.icmp_unsigned(">", size, args[0]), size, args[0])

    return types.uint32(types.uint32, types.float32), generate


@intrinsic
def add_square(_context: Any, _total: Any, _value: Any) -> Any:
    """A float64 total plus the square of a float32; vectorization may change the order."""

    def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = builder.fpext(args[1], ir.DoubleType())
        square = builder.fmul(wide, wide, flags=("contract",))
        return builder.fadd(args[0], square, flags=("contract", "reassoc"))

    return types.float64(types.float64, types.float32), generate


# Access by address lets one loop serve a row of either of two arrays. The loop around such a use
# must name the array again, or numba could free it before.


@intrinsic
def address(_context: Any, array: Any, _position: Any) -> Any:
    """The memory address of the byte at a position."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = byte_pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.ptrtoint(pointer, args[1].type)

    return types.intp(array, types.intp), generate


def _float_at(builder: Any, start: Any, offset: Any) -> Any:
    # The sum of two integers would hide the loop's memory from LLVM's vectorizer.
    begin = builder.inttoptr(start, cgutils.voidptr_t)
    return builder.bitcast(builder.gep(begin, [offset]), ir.FloatType().as_pointer())


@intrinsic
def peek(_context: Any, _address: Any, _offset: Any) -> Any:
    """The float32 at an offset in bytes from an address."""

    def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(_float_at(builder, args[0], args[1]), align=1)

    return types.float32(types.intp, types.intp), generate


@intrinsic
def poke(_context: Any, _address: Any, _offset: Any, _value: Any) -> Any:
    """Store a float32 at an offset in bytes from an address."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.store(args[2], _float_at(builder, args[0], args[1]), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), generate
