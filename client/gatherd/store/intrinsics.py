"""What the kernels in compiled_keys.py and compiled_bags.py are made with: numba, and its gaps.

numba knows neither float16 nor bfloat16 on a CPU, and assumes that arrays are aligned. So elements
are loaded by intrinsics, from a byte position, with an alignment of 1.

Its cache looks at the file a kernel stands in and at no other: who changes this file touches those
two, or removes their cached kernels.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]  # ships no type information
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaError
from numba.extending import intrinsic as _untyped_intrinsic

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
            # No folder to write to, a full disk, a damaged file: slower to start, and no worse.
            compiled = numba.njit(signature, **options)(function)
        return compiled

    return decorate


def inlined(function: _F) -> _F:
    """A part of kernels, compiled into each of them."""
    part: Any = numba.njit(fastmath={"contract"}, nogil=True, forceinline=True)(function)
    return cast(_F, part)


def _intrinsic(function: Callable[..., Any]) -> Any:
    # The typing context is numba's to give.
    made: Any = _untyped_intrinsic(function)
    return made


def _byte_pointer(context: Any, builder: Any, array_type: Any, array: Any, position: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    data = builder.bitcast(data, cgutils.voidptr_t)
    return builder.gep(data, [position])


def _loader(bits: Any, result: Any, widen: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic: the element of LLVM type `bits` at a byte position, widened to `result`."""

    def load(_context: Any, array: Any, _position: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _byte_pointer(context, builder, signature.args[0], args[0], args[1])
            value = builder.load(builder.bitcast(pointer, bits.as_pointer()))
            value.align = 1
            return widen(context, builder, value)

        return result(array, types.intp), generate

    return _intrinsic(load)


_INT32 = ir.IntType(32)


def _as_is(_: Any, _builder: Any, value: Any) -> Any:
    return value


def _narrow(_: Any, builder: Any, value: Any) -> Any:
    return builder.fptrunc(value, ir.FloatType())


def _bfloat16(_: Any, builder: Any, value: Any) -> Any:
    wide = builder.zext(value, _INT32)
    return builder.bitcast(builder.shl(wide, _INT32(16)), ir.FloatType())


def _float16(context: Any, builder: Any, value: Any) -> Any:
    triple, _, features = context.codegen().magic_tuple()
    if triple.startswith("aarch64") or "+f16c" in features:
        return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
    # Without an instruction for it LLVM calls a C function that isn't there, and aborts. By hand,
    # after Giesen, "Half to float done quick" (2012): the exponent is moved by 127 − 15, once more
    # for infinity and NaN; subnormals are made normal by a subtraction.
    wide = builder.zext(value, _INT32)
    moved = builder.shl(builder.and_(wide, _INT32(0x7FFF)), _INT32(13))
    exponent = builder.and_(moved, _INT32(0x7C00 << 13))
    moved = builder.add(moved, _INT32(112 << 23))
    special = builder.icmp_unsigned("==", exponent, _INT32(0x7C00 << 13))
    normal = builder.select(special, builder.add(moved, _INT32(112 << 23)), moved)
    smallest = builder.bitcast(_INT32(113 << 23), ir.FloatType())
    small = builder.bitcast(builder.add(moved, _INT32(1 << 23)), ir.FloatType())
    small = builder.bitcast(builder.fsub(small, smallest), _INT32)
    subnormal = builder.icmp_unsigned("==", exponent, _INT32(0))
    sign = builder.shl(builder.and_(wide, _INT32(0x8000)), _INT32(16))
    bits = builder.or_(builder.select(subnormal, small, normal), sign)
    return builder.bitcast(bits, ir.FloatType())


load_u64 = _loader(ir.IntType(64), types.uint64, _as_is)
load_float32 = _loader(ir.FloatType(), types.float32, _as_is)
load_float16 = _loader(ir.IntType(16), types.float32, _float16)
load_bfloat16 = _loader(ir.IntType(16), types.float32, _bfloat16)
load_float64 = _loader(ir.DoubleType(), types.float32, _narrow)


@_intrinsic
def prefetch(_context: Any, array: Any, _position: Any) -> Any:
    """Ask for the cache line at a byte position; harmless anywhere."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _byte_pointer(context, builder, signature.args[0], args[0], args[1])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, kind, "llvm.prefetch.p0i8"
        )
        builder.call(function, [pointer, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
