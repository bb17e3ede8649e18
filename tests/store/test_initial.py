"""A key's initial vector is what the stated formula says, bit for bit."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from gatherd.errors import InvalidArgument
from gatherd.store.dtypes import DType
from gatherd.store.initial import Initial
from gatherd.store.initializer import Distribution, Initializer, Law
from gatherd.store.keys import Keys, as_keys

SEED = 0x0123_4567_89AB_CDEF
DIM = 48
LAWS = (
    Distribution(Law.CONSTANT, 0.1),
    Distribution(Law.UNIFORM, -0.05, 0.05),
    Distribution(Law.UNIFORM, 3.0, 7.5),
    Distribution(Law.NORMAL, 0.0, 0.05),
    Distribution(Law.NORMAL, -2.0, 1.0),
    Distribution(Law.TRUNCATED_NORMAL, 0.0, 1.0),
    Distribution(Law.TRUNCATED_NORMAL, 0.25, 0.125),
)
INTS = np.array([0, 1, -1, 7, 2**62, -(2**63), 2**63 - 1, *range(100, 3000)], np.int64)
TEXTS = ["a", "œuf", "eight by", "nine byte", "x" * 1024, *(f"word{i}" for i in range(2000))]

# The formula of store/initial.py, from its text, in Python's integers and NumPy's float64.

U64 = 2**64 - 1


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64
    return z ^ (z >> 31)


def hash_of(key: int | bytes) -> int:
    if isinstance(key, int):
        return mix((key & U64) ^ SEED)
    hashed = mix(SEED ^ len(key))
    for begin in range(0, len(key), 8):
        hashed = mix(hashed ^ int.from_bytes(key[begin : begin + 8], "little"))
    return hashed


def polynomial(x: NDArray[np.float64], highest_first: list[float]) -> NDArray[np.float64]:
    total = np.full_like(x, highest_first[0])
    for coefficient in highest_first[1:]:
        total = total * x + coefficient
    return total


def logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    m, e = np.frexp(x)  # in [½, 1)
    m, e = m * 2, e - 1
    above = m > 1.4142135623730951
    m, e = np.where(above, m / 2, m), np.where(above, e + 1, e)
    f = (m - 1) / (m + 1)
    series = polynomial(f * f, [1 / k for k in range(21, 0, -2)])
    return np.asarray(e * 0.6931471805599453 + 2 * f * series)


def quantile(p: NDArray[np.float64]) -> NDArray[np.float64]:
    q = p - 0.5
    central = 0.180625 - q * q
    at_center = q * (
        polynomial(
            central,
            [
                *(2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4),
                *(4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3),
                *(1.3314166789178437745e2, 3.3871328727963666080e0),
            ],
        )
        / polynomial(
            central,
            [
                *(5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4),
                *(2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2),
                *(4.2313330701600911252e1, 1.0),
            ],
        )
    )
    r = np.sqrt(-logarithm(np.where(q < 0, p, 1 - p)))
    near = polynomial(
        r - 1.6,
        [
            *(7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1),
            *(1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0),
            *(4.63033784615654529590e0, 1.42343711074968357734e0),
        ],
    ) / polynomial(
        r - 1.6,
        [
            *(1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2),
            *(1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0),
            *(2.05319162663775882187e0, 1.0),
        ],
    )
    far = polynomial(
        r - 5,
        [
            *(2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3),
            *(2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0),
            *(5.46378491116411436990e0, 6.65790464350110377720e0),
        ],
    ) / polynomial(
        r - 5,
        [
            *(2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5),
            *(7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1),
            *(5.99832206555887937690e-1, 1.0),
        ],
    )
    in_tail = np.where(r <= 5, near, far)
    return np.where(np.abs(q) <= 0.425, at_center, np.where(q < 0, -in_tail, in_tail))


def expected(keys: list[int] | list[bytes], law: Distribution, dim: int) -> NDArray[np.float32]:
    a, b = law.a, law.b
    x = np.array(
        [
            [mix((hash_of(key) + (j + 1) * 0x9E3779B97F4A7C15) & U64) for j in range(dim)]
            for key in keys
        ],
        np.uint64,
    ).reshape(len(keys), dim)
    u = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    p = ((x >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    match law.law:
        case Law.CONSTANT:
            v = np.full(x.shape, a)
        case Law.UNIFORM:
            v = a + u * (b - a)
        case Law.NORMAL:
            v = a + b * quantile(p)
        case Law.TRUNCATED_NORMAL:
            v = a + b * quantile(0.022750131948179207 + p * 0.9544997361036416)
    return v.astype(np.float32)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("given", [INTS, TEXTS], ids=["integers", "strings"])
def test_vectors_are_those_of_the_formula(given: object, law: Distribution) -> None:
    keys = as_keys(given)
    drawn = Initial(SEED, DIM, law).vectors(keys)
    assert drawn.shape == (keys.size, DIM)
    listed = keys.tolist()
    np.testing.assert_array_equal(drawn.view(np.uint32), expected(listed, law, DIM).view(np.uint32))


def test_normals_reach_the_tails_and_are_those_of_the_standard_library() -> None:
    law = Distribution(Law.NORMAL, 0.0, 1.0)
    keys = np.arange(40_000)
    drawn = Initial(SEED, 64, law).vectors(keys)
    assert np.abs(drawn).max() > 4.7  # both of the quantile's parts away from the middle
    some = np.flatnonzero((np.abs(drawn) > 4.0).any(axis=1))[:40]
    # As different as two ways of rounding to float32 can be: 1 in 2**24.
    judge = NormalDist()
    for i in some.tolist():
        h = hash_of(i)
        for j in range(64):
            x = mix((h + (j + 1) * 0x9E3779B97F4A7C15) & U64)
            exact = judge.inv_cdf(((x >> 12) + 0.5) * 2.0**-52)
            assert math.isclose(float(drawn[i, j]), exact, rel_tol=2.0**-23, abs_tol=1e-12)


def test_the_farthest_tail_is_the_standard_library_s_too() -> None:
    smallest = np.array([2.0**-53, 1 - 2.0**-53, 2.0**-40, 1e-9, 0.074, 0.9251, 0.5])
    judge = [NormalDist().inv_cdf(p) for p in smallest.tolist()]
    np.testing.assert_allclose(quantile(smallest), judge, rtol=1e-14)


@pytest.mark.parametrize(
    ("law", "mean", "deviation"),
    [
        (Distribution(Law.UNIFORM, -1.0, 3.0), 1.0, 4 / math.sqrt(12)),
        (Distribution(Law.NORMAL, 0.5, 2.0), 0.5, 2.0),
        (Distribution(Law.TRUNCATED_NORMAL, 0.0, 1.0), 0.0, 0.87962566103423978),
    ],
)
def test_values_have_the_moments_of_their_law(
    law: Distribution, mean: float, deviation: float
) -> None:
    drawn = Initial(SEED, 64, law).vectors(np.arange(50_000)).astype(np.float64)
    margin = 5 * deviation / math.sqrt(drawn.size)
    assert abs(drawn.mean() - mean) < margin
    assert abs(drawn.std() - deviation) < margin
    # Neighboring keys and neighboring elements have nothing in common.
    flat = (drawn - mean) / deviation
    assert abs((flat[1:] * flat[:-1]).mean()) < 5 / math.sqrt(drawn.size)
    assert abs((flat[:, 1:] * flat[:, :-1]).mean()) < 5 / math.sqrt(drawn.size)
    if law.law is Law.TRUNCATED_NORMAL:
        assert np.abs(drawn).max() <= 2.0


@pytest.mark.parametrize(
    "keys",
    [
        np.array([5, 6], np.int8),
        np.array([5, 6], np.uint64),
        np.array([5, 6], np.int64)[::-1][::-1],
    ],
)
def test_a_key_has_one_vector_whatever_its_type(keys: Keys) -> None:
    initial = Initial(SEED, DIM, LAWS[3])
    np.testing.assert_array_equal(initial.vectors(keys), initial.vectors(np.array([5, 6])))


def test_vectors_have_the_keys_shape_and_depend_on_the_seed() -> None:
    keys = np.arange(6).reshape(2, 3)
    first = Initial(1, DIM, LAWS[3]).vectors(keys)
    assert first.shape == (2, 3, DIM)
    assert not (Initial(2, DIM, LAWS[3]).vectors(keys) == first).any()
    assert Initial(1, DIM, LAWS[3]).vectors(np.empty((0, 4), np.int64)).shape == (0, 4, DIM)


@pytest.mark.parametrize("name", ["orthogonal", "identity"])
def test_what_draws_a_whole_table_draws_no_row(name: str) -> None:
    distribution = Initializer.parse(name).distribution(100, DIM)
    with pytest.raises(InvalidArgument, match="draws a whole table at once"):
        Initial(SEED, DIM, distribution)


def test_what_float16_can_t_hold_is_refused() -> None:
    law = Distribution(Law.NORMAL, 0.0, 8000.0)
    Initial(SEED, DIM, law).check_fits(DType.BFLOAT16)
    Initial(SEED, DIM, Distribution(Law.NORMAL, 0.0, 7000.0)).check_fits(DType.FLOAT16)
    with pytest.raises(InvalidArgument, match="float16 ends at 65504"):
        Initial(SEED, DIM, law).check_fits(DType.FLOAT16)
