"""Folders and indexes as sources: parts of a Parquet table, and models in Hugging Face's layout.

A model's folder has its weights in one file, or in shards with an index. The embedding table is
recognised by its name, if that is a usual one.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.format import SafetensorsHeader, open_readonly, read_safetensors_header
from gatherd.store.gguf import GGUF_MAGIC, TOKEN_TABLE, read_gguf_header
from gatherd.store.parts import list_parts, pick
from gatherd.store.shards import INDEX_BYTES_MAX, read_weight_map
from gatherd_server.loaders.batches import RowSource
from gatherd_server.loaders.limits import FOLDER_FILES_MAX, PICKLE_BYTES_MAX
from gatherd_server.loaders.locations import is_uri
from gatherd_server.loaders.streams import Opened, reading
from gatherd_server.loaders.torch_pickle import read_tensors
from gatherd_server.loaders.torch_zip import PICKLE_ENTRY, shown_tensor, torch_root

Recognise = Callable[[str, str | None], RowSource]
"""Opens the file at a location, given the part of it that is meant."""

_WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# sentence-transformers lists the folders of a model's parts in this file.
_MODULES = "modules.json"
_CONFIG = "config.json"
_DOCUMENT_BYTES_MAX = 16 << 20
# The last two words of the usual names of models' token tables.
_TABLES = {
    *("word_embeddings.weight", "embed_tokens.weight", "wte.weight", "embed_in.weight"),
    *("token_embedding.weight", "tok_embeddings.weight", "word_embedding.weight"),
    *("shared.weight", "embedding.weight", "emb_layer.weight", "embeddings.weight"),
    *("token_embeddings.weight", "tokens_embed.weight", "embeddings", "embedding", TOKEN_TABLE),
}
# Output layers, which share the table's weights if config.json says so.
_TIED = {"lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight",
         "lm_head.decoder.weight", "output.weight"}  # fmt: skip


def index_source(opened: Opened, part: str | None, recognise: Recognise) -> RowSource:
    """One tensor, found by the index of a model's safetensors or torch shards."""
    files = read_weight_map(opened.stream.read(INDEX_BYTES_MAX + 1), opened.name)
    tensor = pick(opened.name, part, {key: f"in {file}" for key, file in files.items()})
    if is_uri(opened.name):
        location = f"{opened.name.rpartition('/')[0]}/{files[tensor]}"
    else:
        location = str(Path(opened.name).parent / files[tensor])
    return recognise(location, tensor)


def folder_sources(location: str, part: str | None, recognise: Recognise) -> list[RowSource]:
    """The rows of a folder: of the parts of a Parquet table, or of a model's embedding table."""
    folder = Path(location)
    files = _files(folder)
    parts = [file for file in files if file.suffix == ".parquet"]
    if parts:
        return [recognise(str(file), part) for file in parts]
    weights = _weights(folder)
    if weights is None:
        names = [str(file.relative_to(folder)) for file in files]
        raise InvalidArgument(
            f"{location} is a folder without Parquet parts or a model's weights; name a file in it:"
            + list_parts({f"{location}/{name}": "" for name in names})
        )
    return [recognise(str(weights), _table(folder, weights, part))]


def _files(folder: Path) -> list[Path]:
    """The files below a folder, in order, except hidden ones and those like _SUCCESS."""

    def below(inner: Path) -> Iterator[Path]:
        for path in sorted(inner.iterdir()):
            if path.name.startswith((".", "_")):
                continue
            if path.is_dir() and not path.is_symlink():
                yield from below(path)
            elif path.is_file():
                yield path

    found = []
    with reading(str(folder)):
        for path in below(folder):
            found.append(path)
            if len(found) > FOLDER_FILES_MAX:
                raise BadFile(f"{folder} has more than {FOLDER_FILES_MAX} files")
    return found


def _weights(folder: Path) -> Path | None:
    """The file of a model's weights, or their index, in its folder or a module's."""
    modules = _document(folder / _MODULES)
    paths = [
        str(module["path"])
        for module in (modules if isinstance(modules, list) else [])
        if isinstance(module, dict) and isinstance(module.get("path"), str)
    ]
    for path in ["", *paths]:
        inside = folder / path
        if inside.resolve().is_relative_to(folder.resolve()):
            for name in _WEIGHTS:
                if (inside / name).is_file():
                    return inside / name
    models = sorted(folder.glob("*.gguf")) or sorted(folder.glob("*.safetensors"))
    return models[0] if len(models) == 1 else None


def _table(folder: Path, weights: Path, part: str | None) -> str:
    """The tensor that is meant; InvalidArgument, listing them, when names don't decide it."""
    shapes = _tensors(weights)
    if part is not None and part in shapes:
        return part
    tables = [name for name in shapes if ".".join(name.split(".")[-2:]) in _TABLES]
    config = _document(folder / _CONFIG) or _document(weights.parent / _CONFIG)
    is_tied = isinstance(config, dict) and config.get("tie_word_embeddings") is True
    if len(tables) == 1 and (part is None or (is_tied and part in _TIED)):
        return tables[0]
    if part is None and len(tables) > 1:
        shapes = {name: shapes[name] for name in tables}
    return pick(str(weights), part, shapes)


def _tensors(weights: Path) -> dict[str, str]:
    """Every tensor of a model's weights, with type and shape as text."""
    name = str(weights)
    fd = open_readonly(weights)
    with os.fdopen(fd, "rb", 0) as file:
        if weights.suffix == ".json":
            files = read_weight_map(file.read(INDEX_BYTES_MAX + 1), name)
            return {key: f"in {shard}" for key, shard in files.items()}
        magic = file.read(4)
        if magic == GGUF_MAGIC:
            tensors = read_gguf_header(fd, name).tensors
            return {key: f"{found.kind} {found.shape}" for key, found in tensors.items()}
        if not magic.startswith(b"PK"):
            header: SafetensorsHeader = read_safetensors_header(fd, name)
            return header.shapes(aliases=True)
    with reading(name), zipfile.ZipFile(weights) as archive:
        root = torch_root(archive.namelist())
        if root is None:
            raise BadFile(f"{name} is a zip archive, but none of torch's")
        with archive.open(root + PICKLE_ENTRY) as pickled:
            found_tensors = read_tensors(pickled.read(PICKLE_BYTES_MAX + 1), name)
    return {key: shown_tensor(found) for key, found in found_tensors.items()}


def _document(path: Path) -> object:
    """A small JSON file's content; None when it is absent or isn't JSON."""
    if not path.is_file():
        return None
    with reading(str(path)), open(path, "rb") as file:
        data = file.read(_DOCUMENT_BYTES_MAX)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
