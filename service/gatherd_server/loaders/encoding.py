"""Byte order marks at the front of a text: UTF-8's is skipped, others are refused.

Only the marks are checked: tokens that aren't UTF-8 are taken as they are.
"""

from gatherd.errors import BadFile
from gatherd_server.loaders.streams import ByteStream

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096
_OTHERS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def skip_byte_order_mark(stream: ByteStream) -> None:
    """Skip UTF-8's byte order mark; BadFile for a text in UTF-16 or UTF-32."""
    head = stream.peek(_HEAD_BYTES)
    if head.startswith(BYTE_ORDER_MARK):
        stream.skip(len(BYTE_ORDER_MARK))
        return
    encoding = next((name for mark, name in _OTHERS.items() if head.startswith(mark)), None)
    if encoding is not None and 0 not in head:
        # It is a token of those bytes: in UTF-16 a blank or line feed has a zero.
        encoding = None
    elif _is_latin_utf16(head[:64]):
        encoding = "UTF-16"
    if encoding is not None:
        raise BadFile(
            f"{stream.name} is text in {encoding}; make it UTF-8 (iconv -f {encoding} -t UTF-8)"
        )


def _is_latin_utf16(head: bytes) -> bool:
    """Whether every second byte is zero, and only those, as in Latin text without a mark."""
    first, second = head[::2], head[1::2]
    return len(second) >= 4 and (
        (not first.strip(b"\0") and 0 not in second) or (not second.strip(b"\0") and 0 not in first)
    )
