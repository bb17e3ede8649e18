"""The rules for every pickle that the loaders read without running it: which opcodes, and how many.

The caller passes an Unpickler whose `find_class` knows a fixed list of names. The opcodes are
checked before: only those that the formats' writers use are allowed, no memo slot beyond those that
a program of this length can fill (unpickling one reserves memory for it), and at most OBJECTS_MAX
objects that take no bytes in the file, such as an empty dict.
"""

import pickle
import pickletools
from typing import Any

from gatherd.errors import BadFile
from gatherd_server.loaders.limits import OBJECTS_MAX

_REFUSED_OPCODES = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX", "PERSID", "NEXT_BUFFER"}
_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}
_OBJECT_OPCODES = {
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "DICT", "LIST", "FROZENSET"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MARK", "REDUCE", "NEWOBJ", "BINPERSID", "GLOBAL"),
    "STACK_GLOBAL",
}


class Copies:
    """The number of elements that a pickle may still copy. Kept in a tuple, out of its reach."""

    def __init__(self, count_max: int = OBJECTS_MAX) -> None:
        self.left = self._count_max = count_max

    def take(self, count: int) -> None:
        """Count `count` more elements; BadFile when they are too many."""
        self.left -= count
        if self.left < 0:
            raise BadFile(f"it copies more than {self._count_max} elements")


def run_restricted(unpickler: pickle.Unpickler, data: bytes, name: str) -> Any:
    """Check `data`, the pickle of file `name`, and return the object that `unpickler` makes of it.

    BadFile when it is damaged or does anything that these formats never do.
    """
    try:
        _check_opcodes(data)
        return unpickler.load()
    except BadFile as error:
        raise BadFile(f"{name}: {error.message}") from None
    except Exception as error:  # noqa: BLE001  # a damaged pickle can raise any error
        raise BadFile(f"{name} has a damaged pickle: {type(error).__name__}: {error}") from None


def _check_opcodes(data: bytes) -> None:
    objects = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _REFUSED_OPCODES:
            raise BadFile(f"its pickle has the opcode {opcode.name}, which its format never has")
        if opcode.name in _MEMO_OPCODES and isinstance(argument, int) and argument > count:
            raise BadFile(f"its pickle has memo slot {argument} after {count} opcodes")
        objects += opcode.name in _OBJECT_OPCODES
        if objects > OBJECTS_MAX:
            raise BadFile(f"its pickle makes more than {OBJECTS_MAX} objects")
