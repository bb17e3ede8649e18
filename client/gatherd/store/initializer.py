"""How the first values of rows are drawn: Keras' initializers, with its names and parameters.

Names, parameters and defaults are those of keras.initializers, except that RandomUniform and
RandomNormal are called "uniform" and "normal" (their Keras names are known too, and "glorot" for
"glorot_uniform"). The seed isn't a parameter: it is the table's. In JSON:

    {"name", then every parameter that the initializer has, with its value}

`distribution` has the formulas. The server's loaders/initializers.py draws whole tables of them,
and initial.py a row by its key.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self, TypeAlias

import numpy as np

from gatherd._suggestions import did_you_mean, near
from gatherd.errors import BadFile, InvalidArgument

Parameter: TypeAlias = float | str

# A standard normal's deviation once it is cut at ±2: Keras divides by it, as TensorFlow does.
TRUNCATED_STDDEV: Final = 0.87962566103423978
TRUNCATED_AT: Final = 2.0
"""A truncated normal is drawn again while it is more than so many deviations from its mean."""


class Law(Enum):
    """What elements are drawn from; `a` and `b` are a Distribution's."""

    CONSTANT = "constant"
    """Every element is `a`."""
    UNIFORM = "uniform"
    """[a, b)."""
    NORMAL = "normal"
    """Mean `a`, standard deviation `b`."""
    TRUNCATED_NORMAL = "truncated_normal"
    """The same, drawn again while it is more than 2 · b from `a`."""
    ORTHOGONAL = "orthogonal"
    """`a` times a matrix whose columns, or rows where those are fewer, are orthonormal."""
    IDENTITY = "identity"
    """`a` on the diagonal, 0 elsewhere."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """An initializer of a table whose shape is known."""

    law: Law
    a: float = 0.0
    b: float = 0.0


_RANDOM: Final[dict[str, Parameter]] = {"mean": 0.0, "stddev": 0.05}
_GAIN: Final[dict[str, Parameter]] = {"gain": 1.0}
_PARAMETERS: Final[dict[str, dict[str, Parameter]]] = {
    "zeros": {},
    "ones": {},
    "constant": {"value": 0.0},
    "uniform": {"minval": -0.05, "maxval": 0.05},
    "normal": _RANDOM,
    "truncated_normal": _RANDOM,
    "glorot_uniform": {},
    "glorot_normal": {},
    "he_uniform": {},
    "he_normal": {},
    "lecun_uniform": {},
    "lecun_normal": {},
    "variance_scaling": {"scale": 1.0, "mode": "fan_in", "distribution": "truncated_normal"},
    "orthogonal": _GAIN,
    "identity": _GAIN,
}
_ALIASES: Final = {
    "glorot": "glorot_uniform",
    "random_uniform": "uniform",
    "random_normal": "normal",
}
NAMES: Final = (*_PARAMETERS, *_ALIASES)
"""Every name that `Initializer.parse` knows."""

_WORDS: Final = {
    "mode": ("fan_in", "fan_out", "fan_avg"),
    "distribution": ("truncated_normal", "untruncated_normal", "uniform"),
}
# Scale, mode and distribution of the initializers that are cases of variance_scaling.
_SCALINGS: Final = {
    "glorot": (1.0, "fan_avg"),
    "he": (2.0, "fan_in"),
    "lecun": (1.0, "fan_in"),
}
# They draw a matrix as a whole, so that a row alone has no values.
_OF_A_MATRIX: Final = ("orthogonal", "identity")


@dataclass(frozen=True, slots=True)
class Initializer:
    """An initializer with all its parameters; made by `parse`."""

    name: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, name: str, parameters: Mapping[str, Parameter] | None = None) -> Self:
        """The initializer called `name`; `parameters` override its defaults.

        InvalidArgument for an unknown name or parameter, naming the known ones, and for a value
        that is out of bounds.
        """
        found = _ALIASES.get(name, name)
        if found not in _PARAMETERS:
            raise InvalidArgument(
                f"there is no initializer {name!r}; there are {', '.join(_PARAMETERS)}"
                f"{did_you_mean(near(name, NAMES, 1))}"
            )
        known, given = _PARAMETERS[found], parameters or {}
        for parameter in given:
            if parameter not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise InvalidArgument(
                    f"{name} has no parameter {parameter!r}; {has}"
                    f"{did_you_mean(near(parameter, known, 1))}"
                )
        values = {one: _checked(name, one, value) for one, value in (known | dict(given)).items()}
        if found == "uniform" and values["minval"] > values["maxval"]:  # type: ignore[operator]  # numbers
            raise InvalidArgument(
                f"uniform's minval {values['minval']:g} is above its maxval {values['maxval']:g}"
            )
        return cls(found, values)

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The initializer that `to_json` wrote; BadFile if it didn't write `document`."""
        if not isinstance(document, dict) or not isinstance(document.get("name"), str):
            raise BadFile(f"the manifest's initializer is damaged: {document!r}")
        try:
            return cls.parse(
                document["name"], {key: value for key, value in document.items() if key != "name"}
            )
        except InvalidArgument as error:
            raise BadFile(f"the manifest's initializer can't be used: {error}") from None

    def to_json(self) -> dict[str, Parameter]:
        """Its entry in a manifest."""
        return {"name": self.name, **self.parameters}

    def check_by_row(self) -> None:
        """InvalidArgument when the rows can't be drawn one by one, as an open table draws them."""
        if self.name in _OF_A_MATRIX:
            others = ", ".join(name for name in _PARAMETERS if name not in _OF_A_MATRIX)
            raise InvalidArgument(
                f"an open table draws each row by itself, and {self.name} draws the whole table at "
                f"once; use one of {others}"
            )

    def distribution(self, row_count: int, dim: int) -> Distribution:
        """What the elements of a table of `row_count` rows of `dim` are drawn from.

        fan_in is the number of rows and fan_out is dim, as Keras computes them for a matrix.

            variance_scaling  s = scale / max(1, fan_in, fan_out or their mean)
                              truncated normal of deviation √s / 0.8796, normal of √s,
                              or uniform in ±√(3 s)
            glorot_*          scale 1, fan_avg    he_*  scale 2, fan_in    lecun_*  scale 1, fan_in
        """
        p: Mapping[str, float] = {
            key: value for key, value in self.parameters.items() if not isinstance(value, str)
        }
        match self.name:
            case "zeros":
                return Distribution(Law.CONSTANT, 0.0)
            case "ones":
                return Distribution(Law.CONSTANT, 1.0)
            case "constant":
                return Distribution(Law.CONSTANT, p["value"])
            case "uniform":
                return Distribution(Law.UNIFORM, p["minval"], p["maxval"])
            case "normal":
                return Distribution(Law.NORMAL, p["mean"], p["stddev"])
            case "truncated_normal":
                return Distribution(Law.TRUNCATED_NORMAL, p["mean"], p["stddev"])
            case "orthogonal":
                return Distribution(Law.ORTHOGONAL, p["gain"])
            case "identity":
                return Distribution(Law.IDENTITY, p["gain"])
            case "variance_scaling":
                mode, law = str(self.parameters["mode"]), str(self.parameters["distribution"])
                return _scaled(p["scale"], mode, law, row_count, dim)
        family, kind = self.name.split("_")
        law = "uniform" if kind == "uniform" else "truncated_normal"
        return _scaled(*_SCALINGS[family], law, row_count, dim)


def _scaled(scale: float, mode: str, law: str, row_count: int, dim: int) -> Distribution:
    fan = {"fan_in": row_count, "fan_out": dim, "fan_avg": (row_count + dim) / 2}[mode]
    variance = scale / max(1.0, fan)
    if law == "uniform":
        limit = math.sqrt(3 * variance)
        return Distribution(Law.UNIFORM, -limit, limit)
    if law == "untruncated_normal":
        return Distribution(Law.NORMAL, 0.0, math.sqrt(variance))
    return Distribution(Law.TRUNCATED_NORMAL, 0.0, math.sqrt(variance) / TRUNCATED_STDDEV)


def _checked(owner: str, parameter: str, value: object) -> Parameter:
    """A parameter's value; InvalidArgument if it is out of bounds."""
    if parameter in _WORDS:
        words = _WORDS[parameter]
        # Keras takes "normal" for this too.
        word = "truncated_normal" if (parameter, value) == ("distribution", "normal") else value
        if not isinstance(word, str) or word not in words:
            raise InvalidArgument(
                f"{owner}'s {parameter} is {value!r}; it can be {', '.join(words)}"
                f"{did_you_mean(near(value, words, 1))}"
            )
        return word
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"{owner}'s {parameter} is a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    with np.errstate(over="ignore"):
        single = float(np.float32(number))
    if not math.isfinite(single):
        raise InvalidArgument(f"{owner}'s {parameter} can't be {number:g}: it is finite in float32")
    if parameter == "stddev" and number < 0:
        raise InvalidArgument(f"{owner}'s stddev can't be {number:g}: it is 0 or larger")
    if parameter == "scale" and single <= 0:
        raise InvalidArgument(f"{owner}'s scale can't be {number:g}: it is larger than 0")
    return number
