"""Protobuf's wire encoding, as far as messages are framed by hand on both sides."""


def varint(value: int) -> bytes:
    """`value`, not negative, as a varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
