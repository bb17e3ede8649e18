"""Reads the arrays of a pickle, and the attributes of gensim's objects in it, and runs nothing.

As in torch_pickle.py, the names that NumPy and gensim write resolve to inert objects of ours, and
any other name is refused. Each of our classes has a `__setstate__`, so a pickle that sets state on
a class itself, rather than on one of its objects, is refused too.
"""

import io
import pickle
import reprlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from gatherd.errors import BadFile
from gatherd_server.loaders.limits import PICKLE_DEPTH_MAX
from gatherd_server.loaders.restricted_pickle import Copies, run_restricted


class Holder:
    """An object of gensim's: only its attributes, as the pickle has them."""

    __slots__ = ("attributes",)

    def __new__(cls, *_: Any) -> Self:
        """A Holder without attributes; the arguments for the original class are ignored."""
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


class PickledDtype:
    """An array's dtype, as NumPy spells it ("f4"), and its byte order."""

    __slots__ = ("order", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        match state:
            case (_, str(order), *_):
                self.order = order


class PickledArray:
    """An array inside a pickle; its `state` is checked where it is used."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, tuple) else ()


class _Mapping(dict[Any, Any]):
    """Takes a defaultdict's place."""

    def __setstate__(self, state: object) -> None:
        pass


class _Function(NamedTuple):
    """A function that a pickle may call, by name. A pickle can set nothing on this object."""

    name: str
    encoded: Copies

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "array", _:
                return PickledArray()
            case "dtype", (str(text), *_):
                return PickledDtype(text)
            case "dict", _:
                return _Mapping()
            case "bytes", (str(text), str()):
                self.encoded.take(len(text))
                return text.encode("latin-1")
            case "inert", _:
                return Holder()
        raise BadFile(f"a {self.name} is built from {reprlib.repr(arguments)}")


_NUMPY = {
    **{f"numpy.{core}.multiarray.{name}": kind
       for core in ("core", "_core")
       for name, kind in (("_reconstruct", "array"), ("scalar", "inert"))},
    "numpy.dtype": "dtype",
    "numpy.ndarray": "inert",
    "numpy.random._pickle.__randomstate_ctor": "inert",
    "numpy.random._pickle.__bit_generator_ctor": "inert",
    "numpy.random._mt19937.MT19937": "inert",
}  # fmt: skip
_FUNCTIONS = {
    **_NUMPY,
    "_codecs.encode": "bytes",
    "collections.defaultdict": "dict",
    "collections.OrderedDict": "dict",
    "gensim.utils.call_on_class_only": "inert",
    "builtins.int": "inert",
    "builtins.hash": "inert",
}
_CLASSES = {
    f"gensim.models.{name}"
    for name in (
        *(f"keyedvectors.{kind}" for kind in ("KeyedVectors", "Word2VecKeyedVectors", "Vocab",
                                              "EuclideanKeyedVectors", "Doc2VecKeyedVectors",
                                              "FastTextKeyedVectors", "CompatVocab")),
        *(f"word2vec.{kind}" for kind in ("Word2Vec", "Word2VecVocab", "Word2VecTrainables")),
        *(f"fasttext.{kind}" for kind in ("FastText", "FastTextKeyedVectors", "FastTextVocab",
                                          "FastTextTrainables")),
        *(f"doc2vec.{kind}" for kind in ("Doc2Vec", "Doctag")),
    )
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """pickle's machine, without any way to run code."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        # An honest pickle holds a text that encodes bytes as often as it converts it.
        self._encoded = Copies(len(data))

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name in _CLASSES:
            return Holder
        if name not in _FUNCTIONS:
            raise BadFile(
                f"it asks for {name}, and pickled code is never run here; save the array itself: "
                "numpy.save, or gensim's save_word2vec_format"
            )
        return _Function(_FUNCTIONS[name], self._encoded)

    def persistent_load(self, pid: Any) -> Any:
        raise BadFile(f"it asks for something outside of it: {reprlib.repr(pid)}")


@dataclass(slots=True)
class Found:
    """A pickle's contents by path, the attributes' names joined by dots.

    `arrays` has the arrays, or None for those in a file beside the pickle; `keys` has gensim's
    lists, by the path of the object that they belong to.
    """

    arrays: dict[str, PickledArray | None] = field(default_factory=dict)
    keys: dict[str, list[Any]] = field(default_factory=dict)


def read_arrays(data: bytes, name: str) -> Found:
    """The arrays and keys in the pickle `data` of file `name`. BadFile when it is damaged."""
    found = Found()
    _collect(run_restricted(_Unpickler(data), data, name), "", found, 0)
    return found


def _collect(value: object, path: str, found: Found, depth: int) -> None:
    """Search objects and dicts, but not lists: neither gensim nor NumPy makes lists of them."""
    if depth > PICKLE_DEPTH_MAX:
        return
    match value:
        case PickledArray():
            found.arrays[path or "array"] = value
        case Holder(attributes=attributes):
            before = f"{path}." if path else ""
            for beside in _names(attributes.get("__numpys")):
                found.arrays[before + beside] = None
            for key in ("index_to_key", "index2word", "index2entity"):
                if isinstance(attributes.get(key), list):
                    found.keys[path] = attributes[key]
            for key, child in attributes.items():
                if isinstance(key, str) and isinstance(child, Holder | PickledArray):
                    _collect(child, before + key, found, depth + 1)
        case dict():
            for key, child in value.items():
                if isinstance(key, str) and isinstance(child, Holder | PickledArray | dict):
                    _collect(child, f"{path}.{key}" if path else key, found, depth + 1)


def _names(value: object) -> list[str]:
    """A list of attributes' names; entries that look like paths are left out."""
    names = value if isinstance(value, list) else []
    return [name for name in names if isinstance(name, str) and name.isidentifier()]
