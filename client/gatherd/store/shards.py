"""Indexes of models that are split into shards: JSON, {"weight_map": {TENSOR: FILE}}.

transformers writes them as model.safetensors.index.json and pytorch_model.bin.index.json.
"""

import json
import os
from pathlib import Path

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.format import open_readonly

INDEX_BYTES_MAX = 64 << 20
_SHOWN_MAX = 10


def open_rows(path: Path, tensor: str | None) -> int:
    """A descriptor of `path` or, if that is an index, of the shard that has `tensor`.

    BadFile when either can't be opened or the index is damaged. InvalidArgument when `tensor` is
    None or not in the index.
    """
    fd = open_readonly(path)
    try:
        is_index = os.pread(fd, 64, 0).lstrip()[:1] == b"{"
        data = os.pread(fd, INDEX_BYTES_MAX + 1, 0) if is_index else b""
    finally:
        if is_index:
            os.close(fd)
    if not is_index:
        return fd
    files = read_weight_map(data, str(path))
    if tensor not in files:
        listed = ", ".join(sorted(files)[:_SHOWN_MAX]) or "none"
        raise InvalidArgument(
            f"{path} {'has no tensor ' + repr(tensor) if tensor else 'is an index of shards'}; "
            f"name a tensor as {path}#TENSOR (there are: {listed})"
        )
    return open_readonly(path.parent / files[tensor])


def read_weight_map(data: bytes, name: str) -> dict[str, str]:
    """The file, beside the index `name`, of each tensor. BadFile when `data` is no index."""
    try:
        document = json.loads(data) if len(data) <= INDEX_BYTES_MAX else None
    except (ValueError, RecursionError):
        document = None
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise BadFile(f"{name} is JSON, but no index of safetensors or torch files")
    for file in set(files.values()):
        if file != Path(file).name or file in ("", ".", "..") or "#" in file:
            raise BadFile(f"{name} names {file!r}, which isn't a file beside it")
    return files
