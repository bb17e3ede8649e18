"""Reads a torch pickle's description of its tensors, and runs nothing of it.

A pickle is a program that may call anything it names. Here a name is looked up in one fixed list,
that of torch.load(weights_only=True), and resolves to an inert object of ours; any other name is
refused. The result has only dicts, lists, numbers, strings and `TensorRef`s. The opcodes are
checked before (restricted_pickle.py).

A name resolves to a tuple, or a class with a `__setstate__`: a pickle can set attributes and state
on any object it reaches, even on a frozen dataclass, but on these there is nothing to set.
Copies that a pickle orders are bounded, or a short one could copy its longest list a million times.
"""

import io
import pickle
import reprlib
from typing import Any, NamedTuple, NoReturn

from gatherd.errors import BadFile
from gatherd_server.loaders.limits import (
    OBJECTS_MAX,
    PICKLE_BYTES_MAX,
    PICKLE_DEPTH_MAX,
    TENSORS_MAX,
)
from gatherd_server.loaders.restricted_pickle import Copies, run_restricted

STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "bytes",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
# Which of them exist depends on torch's version; naming any does no harm.
_DTYPES = {
    *STORAGES.values(),
    *("uint16", "uint32", "uint64", "complex32"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float4_e2m1fn_x2", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
} - {"bytes"}
# Classes of tensors, each with a copy in torch.cuda and torch.sparse.
_TENSOR_CLASSES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte",
                   "Bool")  # fmt: skip
_QUANTISERS = ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
               "per_channel_symmetric", "per_channel_affine_float_qparams")  # fmt: skip
# Bytes that are written as text are kept up to this length, because keys are short.
_ENCODED_CHARACTERS_MAX = 64


class StorageRef(NamedTuple):
    """A storage: `key` names the archive's entry with its bytes, `dtype` its elements' type."""

    dtype: str
    key: str
    element_count: int


class TensorRef(NamedTuple):
    """A tensor: its place in its storage, in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class OtherTensor(NamedTuple):
    """A tensor that isn't a part of a storage: its `kind`, and `advice` on what to do."""

    kind: str
    advice: str


class _Mapping(dict[Any, Any]):
    """Takes an OrderedDict's place; ignores the attributes that torch sets on one."""

    def __setstate__(self, state: object) -> None:
        pass


class _Named(NamedTuple):
    """A name that is only mentioned, never called: a storage class or dtype."""

    kind: str
    value: str


class _Builder(NamedTuple):
    """A function that a pickle may call, by name. A pickle can set nothing on this object."""

    name: str
    copies: Copies

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "tensor", (StorageRef() as storage, offset, shape, strides, *rest):
                named = rest[2] if len(rest) > 2 else None
                dtype = (
                    named.value
                    if isinstance(named, _Named) and named.kind == "dtype"
                    else storage.dtype
                )
                return TensorRef(storage, offset, _lengths(shape), _lengths(strides), dtype)
            case "tensor", (OtherTensor() as other, *_):
                return other
            case "parameter", (TensorRef() | OtherTensor() as tensor, *_):
                return tensor
            case "typed", (_Builder() as builder, _, tuple() as inner, *_):
                return builder(*inner)
            case "size", (tuple() | list() as shape,):
                return _lengths(shape)
            case "bytes", (str() as text, *_) if len(text) <= _ENCODED_CHARACTERS_MAX:
                return text.encode("latin-1", "replace")
            case "ordered dict", ():
                return _Mapping()
            case "ordered dict", (dict() | list() as items,):
                self.copies.take(len(items))
                return _Mapping(items if isinstance(items, dict) else map(_pair, items))
            case "inert" | "bytes", _:
                return _Named("inert", "")
        if unusable := _other_tensor(self.name, arguments):
            return unusable
        raise BadFile(f"a {self.name} is built from {reprlib.repr(arguments)}")


def _other_tensor(name: str, arguments: tuple[Any, ...]) -> OtherTensor | None:
    match name, arguments:
        case "quantised tensor", (StorageRef() as storage, _, shape, *_):
            kind = f"quantised {storage.dtype} {_lengths(shape)}"
            return OtherTensor(kind, "save tensor.dequantize()")
        case "nested tensor", _:
            return OtherTensor("nested tensor", "save one of its parts")
        case "sparse tensor", _:
            return OtherTensor("sparse tensor", "save tensor.to_dense()")
        case "meta tensor", (_, shape, *_):
            return OtherTensor(f"tensor {_lengths(shape)} on the meta device", "it has no data")
        case "subclass", _:
            return OtherTensor("tensor subclass", "save it as a plain tensor")
    return None


def _lengths(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or len(shape) > PICKLE_DEPTH_MAX:
        raise BadFile(f"a shape is {reprlib.repr(shape)}")
    return tuple(shape)


def _pair(item: Any) -> tuple[Any, Any]:
    match item:
        case (key, value):
            return key, value
    raise BadFile(f"an OrderedDict is built from {reprlib.repr(item)}")


_REBUILDERS = {
    "_rebuild_tensor": "tensor",
    "_rebuild_tensor_v2": "tensor",
    "_rebuild_tensor_v3": "tensor",
    "_rebuild_parameter": "parameter",
    "_rebuild_parameter_with_state": "parameter",
    "_rebuild_device_tensor_from_cpu_tensor": "parameter",
    "_rebuild_qtensor": "quantised tensor",
    "_rebuild_sparse_tensor": "sparse tensor",
    "_rebuild_nested_tensor": "nested tensor",
    "_rebuild_meta_tensor_no_storage": "meta tensor",
    "_rebuild_wrapper_subclass": "subclass",
    "_rebuild_device_tensor_from_numpy": "subclass",
}
# Names of functions, and `_Builder`'s name for each.
_FUNCTIONS = {
    "collections.OrderedDict": "ordered dict",
    "collections.Counter": "inert",
    **{f"torch._utils.{name}": kind for name, kind in _REBUILDERS.items()},
    "torch._tensor._rebuild_from_type_v2": "typed",
    "torch.nn.parameter.Parameter": "parameter",
    "torch.Size": "size",
    "torch.device": "inert",
    "torch.serialization._get_layout": "inert",
    "_codecs.encode": "bytes",
    **{f"{builtins}.{name}": "inert"
       for builtins in ("builtins", "__builtin__")
       for name in ("set", "frozenset", "bytearray", "complex")},
}  # fmt: skip
# Names that are only mentioned.
_GLOBALS: dict[str, Any] = {
    **{f"{module}.{name}": _Named("storage", dtype)
       for module in ("torch", "torch.cuda", "torch.storage")
       for name, dtype in STORAGES.items()},
    "torch.storage.TypedStorage": _Named("storage", "bytes"),
    **{f"torch.{name}": _Named("dtype", name) for name in _DTYPES},
    **{f"torch.{name}": _Named("quantiser", name) for name in _QUANTISERS},
    **{f"{module}.{name}Tensor": _Named("class", name)
       for module in ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")
       for name in (*_TENSOR_CLASSES, "")},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """pickle's machine, without any way to run code."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._copies = Copies()

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name in _FUNCTIONS:
            return _Builder(_FUNCTIONS[name], self._copies)
        if name not in _GLOBALS:
            _refuse(name)
        return _GLOBALS[name]

    def persistent_load(self, pid: Any) -> StorageRef:
        match pid:
            case (
                "storage",
                _Named(kind="storage", value=dtype),
                str(key),
                str(),
                int(element_count),
                *_,
            ) if element_count >= 0:
                return StorageRef(dtype, key, element_count)
        raise BadFile(f"a storage is described as {reprlib.repr(pid)}")


def _refuse(name: str) -> NoReturn:
    raise BadFile(
        f"it asks for {name}, and pickled code is never run here; save the tensors alone, by "
        "torch.save(model.state_dict(), …), or as safetensors"
    )


def read_tensors(data: bytes, name: str) -> dict[str, TensorRef | OtherTensor]:
    """The tensors that the pickle `data` of file `name` describes, by their path.

    A path is the keys on the way to the tensor, joined by dots; "tensor" for a single tensor.
    BadFile when the pickle is damaged or has anything but tensors and plain containers.
    """
    if len(data) > PICKLE_BYTES_MAX:
        raise BadFile(f"{name}: its pickle has {len(data)} bytes; {PICKLE_BYTES_MAX} are read")
    root = run_restricted(_Unpickler(io.BytesIO(data)), data, name)
    found: dict[str, TensorRef | OtherTensor] = {}
    _collect(root, (), found, [0], name)
    return found


def _collect(
    value: object,
    path: tuple[str, ...],
    found: dict[str, TensorRef | OtherTensor],
    seen: list[int],
    name: str,
) -> None:
    seen[0] += 1
    if seen[0] > OBJECTS_MAX or len(found) > TENSORS_MAX or len(path) > PICKLE_DEPTH_MAX:
        raise BadFile(
            f"{name} holds more than {OBJECTS_MAX} objects or {TENSORS_MAX} tensors, or deeper "
            f"than {PICKLE_DEPTH_MAX}"
        )
    match value:
        case TensorRef() | OtherTensor():
            title = ".".join(path) or "tensor"
            if isinstance(value, TensorRef):
                _check_tensor(value, f"{name}#{title}")
            if found.get(title, value) != value:
                value = OtherTensor("two tensors of this name", "rename one")
            found[title] = value
        case dict():
            for key, child in value.items():
                if isinstance(key, bytes):
                    _collect(child, (*path, key.decode("latin-1")), found, seen, name)
                elif isinstance(key, str | int | float):
                    _collect(child, (*path, str(key)), found, seen, name)
        case list() | tuple():
            for index, child in enumerate(value):
                _collect(child, (*path, str(index)), found, seen, name)


def _check_tensor(tensor: TensorRef, where: str) -> None:
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if (
        not all(type(number) is int and 0 <= number < 2**48 for number in numbers)
        or len(tensor.shape) != len(tensor.strides)
        or len(tensor.shape) > PICKLE_DEPTH_MAX
    ):
        raise BadFile(f"{where} is damaged: shape {reprlib.repr(tensor.shape)}")
