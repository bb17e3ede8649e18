"""Memory by address, for kernels that are given no arrays.

numba counts references, atomically, around every call that is given arrays. So its kernels hand
each other addresses, as intp; whoever calls the first of them holds what is behind.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir  # type: ignore[import-untyped]  # ships no type information
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaError

from gatherd.store.kernels.intrinsics import (
    as_is,
    inlined,
    intrinsic,
    to_bfloat16,
    to_float16,
)

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
# A prefetch's hints: to read, and to keep in every cache.
_READ, _KEEP, _DATA = _I32(0), _I32(3), _I32(1)

WORD = 8
carray: Any = numba.carray  # type: ignore[attr-defined]  # numba's gap
# What the symbols of units are of.
_UNITS: list[Any] = []


def part(function: Callable[..., Any]) -> Any:
    """A part of kernels that stays a function of its own, compiled with the first that calls it."""
    made: Any = numba.njit(nogil=True)(function)
    return made


def unit(*arguments: Any, returns: Any) -> Callable[[Callable[..., Any]], Any]:
    """A part of kernels that is compiled once, or loaded from the cache, and called by a symbol.

    numba links what a kernel calls into it, and compiles all of that again. Arguments and result
    are integers.
    """
    signature = returns(*arguments)

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            made = numba.cfunc(signature, cache=True)(function)
        except NumbaError:
            raise
        except Exception:  # noqa: BLE001  # as in intrinsics.kernel
            made = numba.cfunc(signature)(function)
        _UNITS.append(made)
        symbol = f"gatherd_{function.__name__}"
        binding.add_symbol(symbol, made.address)
        return types.ExternalFunction(symbol, signature)

    return decorate


def pointer_to(builder: Any, address: Any, kind: Any) -> Any:
    """For intrinsics: LLVM's pointer to a value of LLVM type `kind` at an address."""
    return builder.inttoptr(address, kind.as_pointer())


def _loader(bits: Any, extend: str) -> Any:
    """An intrinsic: the integer of LLVM type `bits` at an address, aligned or not, as intp."""

    def load(_context: Any, _address: Any) -> Any:
        def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = builder.load(pointer_to(builder, args[0], bits))
            value.align = 1
            return getattr(builder, extend)(value, _I64) if bits.width < _I64.width else value

        return types.intp(types.intp), generate

    return intrinsic(load)


uint8_at = _loader(_I8, "zext")
uint16_at = _loader(ir.IntType(16), "zext")
uint32_at = _loader(_I32, "zext")
int8_at = _loader(_I8, "sext")
int16_at = _loader(ir.IntType(16), "sext")
int32_at = _loader(_I32, "sext")
int64_at = _loader(_I64, "sext")
"""Also an uint64's bits."""


@intrinsic
def float64_at(_context: Any, _address: Any) -> Any:
    """The float64 at an address, aligned or not."""

    def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value = builder.load(pointer_to(builder, args[0], ir.DoubleType()))
        value.align = 1
        return value

    return types.float64(types.intp), generate


def _atomic_loader(bits: Any, extend: str) -> Any:
    """An intrinsic: the aligned integer at an address; no later load comes before it."""

    def load(_context: Any, _address: Any) -> Any:
        def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
            place = pointer_to(builder, args[0], bits)
            value = builder.load_atomic(place, "acquire", bits.width // 8)
            return getattr(builder, extend)(value, _I64) if bits.width < _I64.width else value

        return types.intp(types.intp), generate

    return intrinsic(load)


uint32_first = _atomic_loader(_I32, "zext")
int64_first = _atomic_loader(_I64, "")


def _storer(bits: Any) -> Any:
    def store(_context: Any, _address: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = builder.trunc(args[1], bits) if bits.width < _I64.width else args[1]
            builder.store(value, pointer_to(builder, args[0], bits), align=1)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return intrinsic(store)


put_uint8 = _storer(_I8)
put_int64 = _storer(_I64)


def _float_storer(bits: Any, narrow: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic: round a float32 to the LLVM type `bits` and put it at an address."""

    def store(_context: Any, _address: Any, _value: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            value = narrow(context, builder, args[1])
            builder.store(value, pointer_to(builder, args[0], bits), align=1)
            return context.get_dummy_value()

        return types.void(types.intp, types.float32), generate

    return intrinsic(store)


put_float32 = _float_storer(ir.FloatType(), as_is)
put_float16 = _float_storer(ir.IntType(16), to_float16)
put_bfloat16 = _float_storer(ir.IntType(16), to_bfloat16)


@intrinsic
def copy(_context: Any, _to: Any, _begin: Any, _byte_count: Any) -> Any:
    """Copy bytes from one address to another."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        to, begin = (pointer_to(builder, one, _I8) for one in args[:2])
        cgutils.raw_memcpy(builder, to, begin, args[2], 1)  # type: ignore[no-untyped-call]  # numba's gap
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def clear(_context: Any, _to: Any, _byte_count: Any) -> Any:
    """Put zeros from an address on."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        to = pointer_to(builder, args[0], _I8)
        cgutils.memset(builder, to, args[1], 0)  # type: ignore[no-untyped-call]  # numba's gap
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def prefetch(_context: Any, _address: Any) -> Any:
    """Ask for the cache line of an address; harmless anywhere."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]  # numba's gap
            builder.module, kind, "llvm.prefetch.p0i8"
        )
        builder.call(function, [pointer_to(builder, args[0], _I8), _READ, _KEEP, _DATA])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def pointer(_context: Any, _address: Any) -> Any:
    """An address as numba.carray takes it."""

    def generate(_: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@inlined
def column(block: Any, index: Any) -> Any:
    """The word at a position of a block of words."""
    return int64_at(block + WORD * index)


@inlined
def put(block: Any, index: Any, value: Any) -> None:
    """Store the word at a position of a block of words."""
    put_int64(block + WORD * index, value)
