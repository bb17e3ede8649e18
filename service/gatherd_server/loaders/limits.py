"""What an import takes at most. Going over one of these is an error that names it."""

from dataclasses import dataclass

# Rows are handed on in blocks of about this many bytes, and files read in pieces of it.
BATCH_BYTES = 4 << 20
# A line of text, and so a vector written out in decimals.
LINE_BYTES_MAX = 32 << 20
# A packed file may hold a packed file, and no deeper.
PACKING_DEPTH_MAX = 2
# An archive of any ratio is let grow to this before the ratio counts.
RATIO_FREE_BYTES = 16 << 20
ARCHIVE_ENTRIES_MAX = 100_000
# A pax header of a tar archive, which is read whole.
TAR_HEADER_BYTES_MAX = 1 << 20
# `xz -9` takes 65 MiB to unpack.
XZ_MEMORY_BYTES_MAX = 256 << 20
# data.pkl of a torch file: a few hundred bytes a tensor.
PICKLE_BYTES_MAX = 16 << 20
PICKLE_DEPTH_MAX = 32
# A pickle of gensim's: it has every word, each twice, and arrays of up to 10 MiB.
ARRAY_PICKLE_BYTES_MAX = 512 << 20
# Containers that a pickle makes: each a byte or two there, and some hundred in memory.
OBJECTS_MAX = 2_000_000
TENSORS_MAX = 100_000
TENSORS_SHOWN_MAX = 20
# HDF5 unpacks a chunk whole.
HDF5_CHUNK_BYTES_MAX = 256 << 20
HDF5_DEPTH_MAX = 64
# A record batch of an Arrow file is unpacked whole.
ARROW_BATCH_BYTES_MAX = 1 << 30
# Parts of a table in a folder, or whatever else is in it.
FOLDER_FILES_MAX = 10_000
# Keys in JSON (a vocabulary), which is read whole.
VOCABULARY_BYTES_MAX = 64 << 20
# `--words` of a fastText model, which are held against its vocabulary.
WORDS_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """How far a packed or fetched source may go.

    `bytes_max` bounds what is unpacked of one file, and what of a remote one is kept on disk;
    `ratio_max` what is unpacked per byte read.
    """

    bytes_max: int = 256 << 30
    ratio_max: int = 200
