"""Reads what a torch pickle says of its tensors, and runs nothing of it.

Pickle is a program that may call whatever it names. Here a name is looked up in one fixed list and
stands for an inert object of ours; any other name is refused. What is built are dicts, lists,
numbers, strings and `TensorRef`s. Before that the opcodes are looked through: only those that torch
writes are let pass, and no memo slot beyond what so short a program can fill, because unpickling
one reserves memory for it.

What stands for a name is a tuple: a pickle can set attributes and state on what it has got hold of,
also on a frozen dataclass, but on a tuple there is nothing to set.
"""

import io
import pickle
import pickletools
from typing import Any, NamedTuple, NoReturn

from gatherd.errors import BadFile
from gatherd_server.loaders.limits import PICKLE_BYTES_MAX, PICKLE_DEPTH_MAX, TENSORS_MAX

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
}
_DTYPES = {*STORAGES.values(), "uint16", "uint32", "uint64"} - {"bytes"}
_REFUSED_OPCODES = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID", "NEXT_BUFFER"}


_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}


class StorageRef(NamedTuple):
    """A storage: `key` names the archive's entry with its bytes, `dtype` is its elements'."""

    dtype: str
    key: str
    element_count: int


class TensorRef(NamedTuple):
    """A tensor: where in its storage it lies, in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class _Mapping(dict[Any, Any]):
    """An OrderedDict's place: takes the attributes torch hangs on one, and forgets them."""

    def __setstate__(self, state: object) -> None:
        pass


class _Named(NamedTuple):
    """What a name stands for that is only mentioned: a storage class or dtype."""

    kind: str
    value: str


class _Builder(NamedTuple):
    """A function that a pickle may call, by name. An object that nothing can be set on."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "tensor", (StorageRef() as storage, offset, shape, strides, *rest):
                named = rest[2] if len(rest) > 2 else None
                dtype = (
                    named.value
                    if isinstance(named, _Named) and named.kind == "dtype"
                    else storage.dtype
                )
                return TensorRef(storage, offset, tuple(shape), tuple(strides), dtype)
            case "parameter", (TensorRef() as tensor, *_):
                return tensor
            case "size", (tuple() | list() as shape,):
                return tuple(shape)
            case "device", _:
                return None
        raise BadFile(f"a {self.name} is built from {arguments!r:.200}")


_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": _Mapping,
    "torch._utils._rebuild_tensor_v2": _Builder("tensor"),
    "torch._utils._rebuild_tensor_v3": _Builder("tensor"),
    "torch._utils._rebuild_parameter": _Builder("parameter"),
    "torch.Size": _Builder("size"),
    "torch.device": _Builder("device"),
    **{f"torch.{name}": _Named("storage", dtype) for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": _Named("storage", "bytes"),
    **{f"torch.{name}": _Named("dtype", name) for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """pickle's machine with every door shut that leads to code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = _GLOBALS.get(f"{module_name}.{global_name}")
        if known is None:
            _refuse(f"{module_name}.{global_name}")
        return known

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
        raise BadFile(f"a storage is described as {pid!r:.200}")


def _refuse(name: str) -> NoReturn:
    raise BadFile(
        f"it asks for {name}, and pickled code is never run here; save the tensors alone, by "
        "torch.save(model.state_dict(), …), or as safetensors"
    )


def read_tensors(data: bytes, name: str) -> dict[str, TensorRef]:
    """The tensors that the pickle `data` of file `name` describes, by their path.

    A path is the keys on the way to the tensor, joined by dots; "tensor" for one that is alone.
    BadFile when the pickle is damaged or asks for anything but tensors and plain containers.
    """
    if len(data) > PICKLE_BYTES_MAX:
        raise BadFile(f"{name}: its pickle has {len(data)} bytes; {PICKLE_BYTES_MAX} are read")
    try:
        _look_through(data)
        root = _Unpickler(io.BytesIO(data)).load()
    except BadFile as error:
        raise BadFile(f"{name}: {error.message}") from None
    except Exception as error:  # noqa: BLE001  # a damaged pickle raises whatever it likes
        raise BadFile(f"{name} has a damaged pickle: {type(error).__name__}: {error}") from None
    if isinstance(root, TensorRef):
        return {"tensor": _checked(root, f"{name}#tensor")}
    found: dict[str, TensorRef] = {}
    _collect(root, (), found, [0], name)
    return found


def _look_through(data: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _REFUSED_OPCODES:
            raise BadFile(f"its pickle has the opcode {opcode.name}, which torch never writes")
        if opcode.name in _MEMO_OPCODES and isinstance(argument, int) and argument > count:
            raise BadFile(f"its pickle has memo slot {argument} after {count} opcodes")


def _collect(
    value: object, path: tuple[str, ...], found: dict[str, TensorRef], seen: list[int], name: str
) -> None:
    seen[0] += 1
    if seen[0] > TENSORS_MAX or len(path) > PICKLE_DEPTH_MAX:
        raise BadFile(
            f"{name} holds more than {TENSORS_MAX} objects, or deeper than {PICKLE_DEPTH_MAX}"
        )
    match value:
        case TensorRef():
            found[".".join(path)] = _checked(value, f"{name}#{'.'.join(path)}")
        case dict():
            for key, child in value.items():
                if isinstance(key, str | int):
                    _collect(child, (*path, str(key)), found, seen, name)
        case list() | tuple():
            for index, child in enumerate(value):
                _collect(child, (*path, str(index)), found, seen, name)


def _checked(tensor: TensorRef, where: str) -> TensorRef:
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if (
        not all(type(number) is int and 0 <= number < 2**48 for number in numbers)
        or len(tensor.shape) != len(tensor.strides)
        or len(tensor.shape) > PICKLE_DEPTH_MAX
    ):
        raise BadFile(f"{where} is damaged: shape {tensor.shape!r:.80}")
    return tensor
