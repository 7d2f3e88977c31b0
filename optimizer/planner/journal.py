"""What a build has found out, kept so that nothing is found out twice: within a build, after a kill, and by the next build.

A record is keyed by what it is about (a plan, a pair of plans, a plan and the evidence it was judged by); the journal as a whole, in
clear, by target, graph, data and versions. It is written as it grows, a line a record, so that a build that was killed leaves all but
its last line. A line bears a sum of itself: a verdict that a disk has changed is none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from optimizer.provenance import plain

T = TypeVar("T")

SCHEMA = "optimize.timings/2"


_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON it was to read."""


class _Head(msgspec.Struct):
    schema: str
    key: dict[str, str]


class _Record(msgspec.Struct):
    kind: str
    about: str
    sum: str
    value: msgspec.Raw


class Journal:
    """Records of one build, on disk in `file` as well; those of earlier ones count where their key is the same.

    `unusable` tells, by file, the fields in which an earlier journal's key differs, or that it can't be read.  `recalled` and `found`
    count by kind what came from records of earlier builds and what was measured by this one.
    """

    def __init__(self, file: Path, key: Mapping[str, str], earlier: tuple[Path, ...] = ()) -> None:
        self._records: dict[tuple[str, str], bytes] = {}
        self._own: set[tuple[str, str]] = set()
        self._file = file
        self.unusable: dict[str, str] = {}
        self.recalled, self.found = Counter[str](), Counter[str]()
        lines = [line for path in earlier if path.exists() for line in self._read(path, key)]
        head = msgspec.json.encode(_Head(SCHEMA, dict(key)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join(line + b"\n" for line in (head, *lines)))

    def _read(self, path: Path, key: Mapping[str, str]) -> list[bytes]:
        """The whole lines of an earlier journal whose key is this one's; none where it is not, with the reason noted."""
        try:
            head, *lines = path.read_bytes().split(b"\n")
            found = msgspec.json.decode(head, type=_Head)
        except (OSError, *_BROKEN):
            self.unusable[path.name] = "it can't be read"
            return []
        if found.schema != SCHEMA or found.key != dict(key):
            fields = sorted(name for name in {*key, *found.key} if key.get(name) != found.key.get(name))
            self.unusable[path.name] = f"it differs in {', '.join(fields) or 'its form'}"
            return []
        kept = []
        for line in lines:
            try:
                record = msgspec.json.decode(line, type=_Record)
            except _BROKEN:
                break  # where a build was killed while it wrote
            if record.sum != _sum(record.kind, record.about, bytes(record.value)):
                continue
            self._records[record.kind, record.about] = bytes(record.value)
            kept.append(line)
        return kept

    def once(self, kind: str, about: object, of: Any, measure: Callable[[], T]) -> T:
        """What `measure` gives, of the type `of` (as msgspec takes one), from the record where there is one."""
        name = hashlib.sha256(_encoded(about)).hexdigest()
        if (known := self._records.get((kind, name))) is not None:
            try:
                recorded: T = msgspec.json.decode(known, type=of)
            except _BROKEN:
                pass  # of another form than this version's: measured anew, and the new record counts
            else:
                self.recalled[kind] += (kind, name) not in self._own
                return recorded
        value = measure()
        self._own.add((kind, name))
        self.found[kind] += 1
        self._records[kind, name] = encoded = _encoded(value)
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(_Record(kind, name, _sum(kind, name, encoded), msgspec.Raw(encoded))) + b"\n")
        return value


def _sum(kind: str, about: str, value: bytes) -> str:
    return hashlib.sha256(f"{kind} {about} ".encode() + value).hexdigest()[:16]


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=plain, order="sorted")
