"""The numba kernels of initial vectors; other modules call them through compiled.py.

store/initial.py has the formula. Every operation of it is rounded by itself, so none of this may be
compiled with `fastmath`, which lets the processor fuse a product and a sum.
"""

from typing import Any

import numpy as np
from numba import types

from gatherd.store.kernels.intrinsics import (
    address,
    bits_of,
    divide,
    float_of,
    kernel,
    read,
    write,
)
from gatherd.store.kernels.keys import hash_bytes, mix
from gatherd.store.kernels.memory import (
    WORD,
    column,
    float64_at,
    part,
    put_bfloat16,
    put_float16,
    put_float32,
    unit,
)

CONSTANT, UNIFORM, NORMAL, TRUNCATED_NORMAL = range(4)
# The words of an initializer: its law, and the bits of two float64.
LAW, A, B, LAW_WORDS = range(4)
# How a vector is stored: numbers of compiled.RowKind.
FLOAT32, FLOAT16 = 0, 1

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ONE, _ELEVEN, _TWELVE = np.uint64(1), np.uint64(11), np.uint64(12)
_LN2 = 0.6931471805599453
_SQRT2 = 1.4142135623730951
_UNIT_53, _UNIT_52 = 2.0**-53, 2.0**-52
# Φ(−2), and Φ(2) − Φ(−2), of the standard normal distribution Φ.
_TAIL, _BETWEEN = 0.022750131948179207, 0.9544997361036416
_MANTISSA = np.uint64((1 << 52) - 1)
_EXPONENT_OF_ONE = np.uint64(1023 << 52)


@part
def _minus_log(value: Any) -> Any:
    """−ln of a positive normal number."""
    bits = bits_of(value)
    exponent = np.float64(np.int64(bits >> np.uint64(52)) - 1023)
    m = float_of((bits & _MANTISSA) | _EXPONENT_OF_ONE)
    if m > _SQRT2:
        m *= 0.5
        exponent += 1.0
    f = divide(m - 1.0, m + 1.0)
    s = f * f
    total = 1 / 21
    for divisor in (19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        total = total * s + divide(1.0, divisor)
    return -(exponent * _LN2 + 2.0 * f * total)


@part
def _normal_at(p: Any) -> Any:
    """The standard normal's quantile of `p` in (0, 1): PPND16 of AS 241."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        a = 2509.0809287301226727
        a = a * r + 33430.575583588128105
        a = a * r + 67265.770927008700853
        a = a * r + 45921.953931549871457
        a = a * r + 13731.693765509461125
        a = a * r + 1971.5909503065514427
        a = a * r + 133.14166789178437745
        a = a * r + 3.3871328727963666080
        b = 5226.4952788528545610
        b = b * r + 28729.085735721942674
        b = b * r + 39307.895800092710610
        b = b * r + 21213.794301586595867
        b = b * r + 5394.1960214247511077
        b = b * r + 687.18700749205790830
        b = b * r + 42.313330701600911252
        b = b * r + 1.0
        return q * divide(a, b)
    r = np.sqrt(_minus_log(p if q < 0.0 else 1.0 - p))
    if r <= 5.0:
        r -= 1.6
        a = 7.74545014278341407640e-4
        a = a * r + 2.27238449892691845833e-2
        a = a * r + 2.41780725177450611770e-1
        a = a * r + 1.27045825245236838258
        a = a * r + 3.64784832476320460504
        a = a * r + 5.76949722146069140550
        a = a * r + 4.63033784615654529590
        a = a * r + 1.42343711074968357734
        b = 1.05075007164441684324e-9
        b = b * r + 5.47593808499534494600e-4
        b = b * r + 1.51986665636164571966e-2
        b = b * r + 1.48103976427480074590e-1
        b = b * r + 6.89767334985100004550e-1
        b = b * r + 1.67638483018380384940
        b = b * r + 2.05319162663775882187
        b = b * r + 1.0
    else:
        r -= 5.0
        a = 2.01033439929228813265e-7
        a = a * r + 2.71155556874348757815e-5
        a = a * r + 1.24266094738807843860e-3
        a = a * r + 2.65321895265761230930e-2
        a = a * r + 2.96560571828504891230e-1
        a = a * r + 1.78482653991729133580
        a = a * r + 5.46378491116411436990
        a = a * r + 6.65790464350110377720
        b = 2.04426310338993978564e-15
        b = b * r + 1.42151175831644588870e-7
        b = b * r + 1.84631831751005468180e-5
        b = b * r + 7.86869131145613259100e-4
        b = b * r + 1.48753612908506148525e-2
        b = b * r + 1.36929880922735805310e-1
        b = b * r + 5.99832206555887937690e-1
        b = b * r + 1.0
    z = divide(a, b)
    return -z if q < 0.0 else z


@unit(types.intp, types.intp, types.intp, types.intp, types.intp, returns=types.intp)
def draw_vector(hashed: Any, law_at: Any, dim: Any, kind: Any, to: Any) -> Any:
    """Put the initial vector of a key with this hash at an address, stored as `kind`."""
    law, a, b = column(law_at, LAW), float64_at(law_at + WORD * A), float64_at(law_at + WORD * B)
    step = np.uint64(hashed)
    for j in range(dim):
        value = a
        if law != CONSTANT:
            step += GOLDEN
            bits = mix(step)
            if law == UNIFORM:
                value = a + np.float64(bits >> _ELEVEN) * _UNIT_53 * (b - a)
            else:
                p = (np.float64(bits >> _TWELVE) + 0.5) * _UNIT_52
                if law == TRUNCATED_NORMAL:
                    p = _TAIL + p * _BETWEEN
                value = a + b * _normal_at(p)
        if kind == FLOAT32:
            put_float32(to + 4 * j, np.float32(value))
        elif kind == FLOAT16:
            put_float16(to + 2 * j, np.float32(value))
        else:
            put_bfloat16(to + 2 * j, np.float32(value))
    return 0


@kernel(read(types.uint64), types.uint64, write(types.uint64))
def hash_ints(keys: Any, seed: Any, out: Any) -> None:
    """The hash of each key."""
    for i in range(keys.size):
        out[i] = mix(keys[i] ^ seed)


@kernel(read(types.int64), read(types.uint8), types.uint64, write(types.uint64))
def hash_strings(offsets: Any, data: Any, seed: Any, out: Any) -> None:
    """The same, for strings."""
    for i in range(out.size):
        out[i] = hash_bytes(data, offsets[i], offsets[i + 1], seed)


@kernel(read(types.uint64), types.intp, write(types.float32, 2))
def draw(hashes: Any, law_at: Any, out: Any) -> None:
    """Fill each row of `out` with the initial vector of the key with that hash."""
    count, dim = out.shape
    to = address(out, 0)
    for i in range(count):
        draw_vector(np.intp(hashes[i]), law_at, dim, FLOAT32, to + i * 4 * dim)


def warm() -> None:
    """Run each kernel once."""
    one, hashes = np.array([0, 1]), np.zeros(1, np.uint64)
    hash_ints(hashes, np.uint64(1), hashes)
    hash_strings(one, np.ones(1, np.uint8), np.uint64(1), hashes)
    words = np.zeros(LAW_WORDS, np.int64)
    draw(hashes, words.ctypes.data, np.empty((1, 1), np.float32))
