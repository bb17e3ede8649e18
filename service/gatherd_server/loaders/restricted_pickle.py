"""What holds for each pickle that is read here without being run: which opcodes, and how many.

Whoever reads one gives an Unpickler whose `find_class` knows a fixed list of names. The opcodes are
looked through before: only those that the formats' writers use are let pass, no memo slot beyond
what so short a program can fill (unpickling one reserves memory for it), and no more objects than
OBJECTS_MAX for all that is made without any bytes in the file, as an empty dict is.
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
    """How many elements a pickle may still have copied. Out of its reach, as a tuple's member."""

    def __init__(self, count_max: int = OBJECTS_MAX) -> None:
        self.left = self._count_max = count_max

    def take(self, count: int) -> None:
        """BadFile when `count` elements more are too many."""
        self.left -= count
        if self.left < 0:
            raise BadFile(f"it copies more than {self._count_max} elements")


def run_restricted(unpickler: pickle.Unpickler, data: bytes, name: str) -> Any:
    """The object that `unpickler` makes of `data`, the pickle of file `name`, which is checked.

    BadFile when it is damaged or does what these formats never do.
    """
    try:
        _check_opcodes(data)
        return unpickler.load()
    except BadFile as error:
        raise BadFile(f"{name}: {error.message}") from None
    except Exception as error:  # noqa: BLE001  # a damaged pickle raises whatever it likes
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
