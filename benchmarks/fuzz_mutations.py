"""Ways to damage a file: any bytes, and inside zip archives, JSON and protocol buffers, whose frame stays true so that the lie gets in."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

Mutation = Callable[[Random, bytes], bytes]

_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 32, 1 << 40)
_WORDS = ("-1", "0", "1e999", "NaN", str(10**30), '""', '"../../escaped"', '"/etc/passwd"', "null", "true", "[]", "{}", '"\\u0000"')
_TOKEN = re.compile(rb'"[^"\n]*"|-?\d+(\.\d+)?|true|false|null')
_DEEP = 20_000
_BOMB = 1 << 28


def flipped(draw: Random, data: bytes) -> bytes:
    """1 to 16 bits the other way."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 16) if data else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncated(draw: Random, data: bytes) -> bytes:
    return data[: draw.choice([0, 1, draw.randrange(len(data) + 1), max(len(data) - draw.randint(1, 64), 0)])]


def spliced(draw: Random, data: bytes) -> bytes:
    """A block of the file over another place of it, or put in between."""
    start, place = draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)
    block = data[start : start + draw.randint(1, 256)]
    return data[:place] + block + data[place + draw.choice([0, len(block)]) :]


def lying(draw: Random, data: bytes) -> bytes:
    """An extreme number where a length or an offset may stand, most often near the start or the end."""
    size = draw.choice([1, 2, 4, 8])
    place = draw.choice([draw.randrange(len(data) + 1), draw.randrange(min(len(data), 512) + 1), max(len(data) - draw.randint(1, 128), 0)])
    number = draw.choice(_EXTREMES) & ((1 << 8 * size) - 1)
    return data[:place] + number.to_bytes(size, draw.choice(["little", "big"])) + data[place + size :]


BYTES: tuple[Mutation, ...] = (flipped, truncated, spliced, lying)


def word(draw: Random, data: bytes) -> bytes:
    """One number, string or constant of a text replaced by an odd one, or by lists nested thousands deep."""
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return data
    token = draw.choice(tokens)
    odd = draw.choice([*_WORDS, "[" * _DEEP + "]" * _DEEP, '{"a":' * _DEEP + "0" + "}" * _DEEP])
    return data[: token.start()] + odd.encode() + data[token.end() :]


def lines(draw: Random, data: bytes) -> bytes:
    """A line left out, doubled, or moved."""
    rows = data.split(b"\n")
    row = rows.pop(draw.randrange(len(rows)))
    for _ in range(draw.randint(0, 2)):
        rows.insert(draw.randrange(len(rows) + 1), row)
    return b"\n".join(rows)


TEXT: tuple[Mutation, ...] = (word, word, word, lines, flipped, truncated)


def header(draw: Random, data: bytes) -> bytes:
    """The JSON before a safetensors file's numbers, its length set right."""
    end = 8 + int.from_bytes(data[:8], "little")
    text = draw.choice(TEXT)(draw, data[8:end])
    return len(text).to_bytes(8, "little") + text + data[end:]


def member(draw: Random, data: bytes) -> bytes:
    """What one member of a zip holds is damaged, with its checksum true."""
    if not data.startswith(b"PK"):  # torch's older checkpoints are none
        return draw.choice(BYTES)(draw, data)
    members = _unzipped(data)
    name = draw.choice(list(members))
    members[name] = draw.choice(TEXT if name.endswith(".json") else BYTES)(draw, members[name])
    return _zipped(members)


def archive(draw: Random, data: bytes) -> bytes:
    """Members of a zip swapped, left out, doubled, renamed to lie outside, or one that unpacks to 256 MiB."""
    if not data.startswith(b"PK"):
        return draw.choice(BYTES)(draw, data)
    held = _unzipped(data)
    first, second = draw.choice(list(held)), draw.choice(list(held))
    how = draw.choice(["swap", "drop", "double", "outside", "bomb"])
    if how == "swap":
        held[first], held[second] = held[second], held[first]
    elif how == "bomb":
        held[first] = bytes(_BOMB)
    else:
        content = held[first] if how == "double" else held.pop(first)
        if how != "drop":
            held["../../escaped" if how == "outside" else f"{first}/again"] = content
    return _zipped(held)


ZIP: tuple[Mutation, ...] = (member, member, member, archive, *BYTES)


def _unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if len(content) == _BOMB else zipfile.ZIP_STORED)
    return made.getvalue()


@dataclass
class Field:
    """One field of a protocol buffer: a number, bytes, or a message of its own."""

    number: int
    wire: int
    value: int | bytes | list[Field]


def message(draw: Random, data: bytes) -> bytes:
    """One field of a protocol buffer changed, left out, doubled, moved, or nested in itself, all lengths set right."""
    root = _fields(data)
    if not root:
        return flipped(draw, data)
    siblings = draw.choice(list(_lists(root)))
    field = draw.choice(siblings)
    how = draw.choice(["change", "change", "change", "drop", "double", "move", "nest"])
    if how == "drop":
        siblings.remove(field)
    elif how == "double":
        siblings.append(field)
    elif how == "move":
        draw.choice(list(_lists(root))).append(Field(field.number, field.wire, _bytes([field]) if field.wire == 2 else field.value))
    elif how == "nest" and field.wire == 2:
        deep = _bytes(field.value) if isinstance(field.value, list) else field.value
        assert isinstance(deep, bytes)
        for _ in range(draw.choice([50, 2_000])):
            deep = _bytes([Field(field.number, 2, deep)])
        field.value = deep
    elif isinstance(field.value, int):
        field.value = draw.choice(_EXTREMES)
    else:
        content = field.value if isinstance(field.value, bytes) else _bytes(field.value)
        field.value = draw.choice([b"", b"../../escaped", draw.choice(BYTES)(draw, content)])
    return _bytes(root)


PROTOBUF: tuple[Mutation, ...] = (message, message, message, message, *BYTES)


def _lists(fields: list[Field]) -> Iterator[list[Field]]:
    """Every list of fields in a message, itself first."""
    yield fields
    for field in fields:
        if isinstance(field.value, list) and field.value:
            yield from _lists(field.value)


def _fields(data: bytes) -> list[Field] | None:
    """What bytes hold if they are a protocol buffer; whatever might be a message counts as one."""
    found: list[Field] = []
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if place < 0 or not 0 < number < 4096:
            return None
        if wire == 0:
            value, place = _varint(data, place)
            found.append(Field(number, wire, value))
        elif wire in {1, 5}:
            size = 8 if wire == 1 else 4
            found.append(Field(number, wire, int.from_bytes(data[place : place + size], "little")))
            place += size
        elif wire == 2:
            size, place = _varint(data, place)
            content = data[place : place + size]
            found.append(Field(number, wire, _fields(content) or content))
            place += size
        else:
            return None
        if not 0 < place <= len(data):
            return None
    return found


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number and the place after it; -1 where there is none."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            return 0, -1
        number |= (data[place] & 0x7F) << shift
        place += 1
        if data[place - 1] < 0x80:
            return number, place
    return 0, -1


def _bytes(fields: list[Field]) -> bytes:
    made = bytearray()
    for field in fields:
        made += _number(field.number << 3 | field.wire)
        if field.wire == 0:
            assert isinstance(field.value, int)
            made += _number(field.value)
        elif field.wire == 2:
            content = _bytes(field.value) if isinstance(field.value, list) else field.value
            assert isinstance(content, bytes)
            made += _number(len(content)) + content
        else:
            size = 8 if field.wire == 1 else 4
            assert isinstance(field.value, int)
            made += (field.value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return bytes(made)


def _number(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
