"""Recognises the text formats, and word2vec's binary form, by a stream's content."""

from dataclasses import dataclass

from gatherd.errors import BadFile, InvalidArgument
from gatherd_server.loaders.batches import OnBadRow, RowSource
from gatherd_server.loaders.delimited import delimited_source
from gatherd_server.loaders.encoding import skip_byte_order_mark
from gatherd_server.loaders.json_lines import json_lines_source
from gatherd_server.loaders.records import ColumnOptions
from gatherd_server.loaders.streams import ByteStream
from gatherd_server.loaders.text import text_source
from gatherd_server.loaders.text_shape import FirstField, text_shape
from gatherd_server.loaders.word2vec_binary import word2vec_binary_source


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How text is read."""

    columns: ColumnOptions
    first_field: FirstField | None
    on_bad_row: OnBadRow
    has_other_keys: bool = False


def source_of_text(stream: ByteStream, options: TextOptions) -> RowSource:
    """The rows of `stream`; BadFile when it is of no known format.

    InvalidArgument when the options don't fit it, or one of them has to decide its meaning.
    """
    skip_byte_order_mark(stream)
    columns, on_bad_row = options.columns, options.on_bad_row
    source = json_lines_source(stream, columns, on_bad_row)
    if source is None and not columns.is_given:
        shape = text_shape(stream, options.first_field, has_other_keys=options.has_other_keys)
        if shape is not None:
            return text_source(stream, shape, on_bad_row)
    if source is None:
        source = delimited_source(stream, columns, on_bad_row, options.first_field)
    if source is not None:
        return source
    if columns.is_given:
        _refuse_columns(stream, columns)
    source = word2vec_binary_source(stream, on_bad_row)
    if source is None:
        raise BadFile(
            f"{stream.name} is of no format we know (by its content); docs/formats.md lists them"
        )
    return source


def _refuse_columns(stream: ByteStream, columns: ColumnOptions) -> None:
    if columns.vector is not None:
        raise InvalidArgument(f"{stream.name} has no parts, so no {columns.vector!r} to pick")
    option = "--key-column" if columns.vectors is None else "--vector-columns"
    raise InvalidArgument(f"{stream.name} has no columns, so leave {option} out")
