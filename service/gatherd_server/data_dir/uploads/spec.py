"""What an upload is to become, as it was begun; `upload.json` in its folder keeps it."""

import base64
import re
import secrets
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gatherd.errors import BadFile, InvalidArgument
from gatherd.store.catalog import check_table_name
from gatherd.store.dtypes import DType
from gatherd.store.key_index import KEYED_ROWS_MAX, KeyKind
from gatherd.store.keys import Keys
from gatherd.store.limits import DIM_MAX, LIVE_VERSION, ROWS_MAX
from gatherd_server.training.optimizer import Optimizer
from gatherd_server.types import OnDuplicate, OptimizerSpec

_ID: Final = re.compile(r"[0-9a-f]{32}")


def check_upload_id(upload: str) -> str:
    """`upload` if it can name one, and so is no path; else InvalidArgument."""
    if not _ID.fullmatch(upload):
        raise InvalidArgument(f"{upload[:64]!r} isn't the name of an upload: 32 hex digits")
    return upload


def drawn_upload_id() -> str:
    """A name for an upload that nobody else has."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Bounds on all uploads of a data dir; see the settings uploads_… and upload_seconds."""

    count_max: int = 16
    bytes_max: int = 2**40
    seconds: float = 86_400.0


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """A table to come. `row_count` None when it isn't announced.

    With `publishes` it is the next version of a table that is there, provided that `if_version` is
    live at the commit; `optimizer` None then keeps the table's own.
    """

    table: str
    dim: int
    dtype: DType
    key_kind: KeyKind | None = None
    row_count: int | None = None
    optimizer: OptimizerSpec | None = None
    default_vector: tuple[float, ...] | None = None
    publishes: bool = False
    if_version: int = LIVE_VERSION
    allows_nonfinite: bool = False
    on_duplicate: OnDuplicate = OnDuplicate.ERROR
    frozen: bool = False

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return self.dim * self.dtype.itemsize

    def check(self) -> None:
        """InvalidArgument when no table could be so."""
        check_table_name(self.table)
        if not 1 <= self.dim <= DIM_MAX:
            raise InvalidArgument(f"dim is {self.dim}; it must be 1 to {DIM_MAX}")
        rows_max = ROWS_MAX if self.key_kind is None else KEYED_ROWS_MAX
        if self.row_count is not None and not 0 <= self.row_count <= rows_max:
            raise InvalidArgument(f"rows is {self.row_count}; it must be 0 to {rows_max}")
        if self.row_count is not None and self.row_count * self.row_bytes >= 2**63:
            raise InvalidArgument(f"no file can have {self.row_count} rows of {self.row_bytes} B")
        optimizer = self.wanted_optimizer
        if optimizer is not None:
            optimizer.check_table(self.dtype, self.row_count)
        if self.frozen and self.publishes:
            raise InvalidArgument("frozen is of a new table; a version takes updates as its table")
        if self.if_version != LIVE_VERSION and not self.publishes:
            raise InvalidArgument("if_version is of a new version of a table, not of a new table")
        if self.on_duplicate is not OnDuplicate.ERROR and self.key_kind is None:
            raise InvalidArgument("on_duplicate is about keys; this upload has none")
        if self.default_vector is not None and len(self.default_vector) != self.dim:
            raise InvalidArgument(
                f"the default vector has {len(self.default_vector)} elements; dim is {self.dim}"
            )

    @property
    def wanted_optimizer(self) -> Optimizer | None:
        """What updates the table; None for nothing, and for what updates the table to publish to.

        InvalidArgument for an impossible one.
        """
        given = None if self.optimizer is None else Optimizer.from_spec(self.optimizer)
        if self.publishes:
            return given
        return Optimizer.for_new_table(given, self.dtype, frozen=self.frozen)

    @property
    def default_array(self) -> NDArray[np.float32] | None:
        """The default vector as an array."""
        if self.default_vector is None:
            return None
        return np.array(self.default_vector, np.float32)

    def to_json(self) -> dict[str, Any]:
        """The contents of upload.json, without its checksum."""
        vector = self.default_array
        return {
            **asdict(self),
            "dtype": self.dtype.value,
            "key_kind": self.key_kind.value if self.key_kind else None,
            "on_duplicate": self.on_duplicate.value,
            "default_vector": None
            if vector is None
            else base64.b64encode(vector.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], where: str) -> "UploadSpec":
        """The reverse of `to_json`; BadFile, naming `where`, for anything else."""
        fields = {key: value for key, value in document.items() if key != "crc32"}
        try:
            vector = fields["default_vector"]
            if vector is not None:
                array = np.frombuffer(base64.b64decode(vector), np.float32)
                fields["default_vector"] = tuple(map(float, array))
            fields |= {
                "dtype": DType(fields["dtype"]),
                "key_kind": KeyKind(fields["key_kind"]) if fields["key_kind"] else None,
                "on_duplicate": OnDuplicate(fields["on_duplicate"]),
            }
            if fields["optimizer"] is not None:
                fields["optimizer"] = OptimizerSpec(**fields["optimizer"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{where} is damaged: {error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Rows of an upload: `rows`, (n, dim) in the dtype's storage, from row `offset` on.

    `checksum` is zlib's crc32 of the keys' bytes as they were sent, `key_bytes`, and the rows';
    None when the sender gave none.
    """

    upload: str
    offset: int
    rows: NDArray[Any]
    dtype: DType
    keys: Keys | None = None
    checksum: int | None = None
    key_bytes: tuple[bytes | memoryview, ...] = ()


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """An upload as it is now. `expires_seconds` is Unix time.

    `chunk_bytes_max` is the most bytes of rows and keys that a request may bring.
    """

    upload: str
    spec: UploadSpec
    next_row: int
    byte_count: int
    expires_seconds: int
    is_committing: bool = False
    chunk_bytes_max: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    """An upload that is a version now; `duplicates` counts keys that an earlier row had."""

    version: int
    lsn: int
    row_count: int
    duplicates: int


def _text_of(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.tobytes()).decode()
