"""The limits of an import. Exceeding one of them is an error that names it."""

from dataclasses import dataclass

# Rows are passed on in blocks of about this many bytes, and files are read in such pieces.
BATCH_BYTES = 4 << 20
# A line of text, and so a vector written out in decimals.
LINE_BYTES_MAX = 32 << 20
# A packed file may contain a packed file, but no third one in that.
PACKING_DEPTH_MAX = 2
# Up to this size an archive may have any ratio.
RATIO_FREE_BYTES = 16 << 20
ARCHIVE_ENTRIES_MAX = 100_000
# A pax header of a tar archive, which is read whole.
TAR_HEADER_BYTES_MAX = 1 << 20
# `xz -9` takes 65 MiB to unpack.
XZ_MEMORY_BYTES_MAX = 256 << 20
# data.pkl of a torch file: a few hundred bytes per tensor.
PICKLE_BYTES_MAX = 16 << 20
PICKLE_DEPTH_MAX = 32
# A pickle by gensim: it has every word twice, and arrays of up to 10 MiB.
ARRAY_PICKLE_BYTES_MAX = 512 << 20
# Containers that a pickle makes: each takes a byte or two there, and some hundred in memory.
OBJECTS_MAX = 2_000_000
TENSORS_MAX = 100_000
# HDF5 unpacks whole chunks.
HDF5_CHUNK_BYTES_MAX = 256 << 20
HDF5_DEPTH_MAX = 64
# Arrow unpacks whole record batches of a file.
ARROW_BATCH_BYTES_MAX = 1 << 30
# Parts of a table in a folder, and all other files in it.
FOLDER_FILES_MAX = 10_000
# Keys in JSON (a vocabulary); the whole file is read.
VOCABULARY_BYTES_MAX = 64 << 20
# `--words` of a fastText model, which are looked up in its vocabulary.
WORDS_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """The limits of a packed or fetched source.

    `bytes_max` bounds the unpacked bytes of one file, and the bytes of a remote one that are kept
    on disk; `ratio_max` bounds the unpacked bytes per byte read.
    """

    bytes_max: int = 256 << 30
    ratio_max: int = 200
