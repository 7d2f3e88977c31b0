"""Text: records with `text`, perhaps `text_pair`, and `label`, through the model folder's own tokenizer or one of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.process import user_tokens
from optimizer.provenance import sha256_of_file
from optimizer.readers.huggingface import FolderTokenizer, folder_tokenizer, label_names
from optimizer.readers.records import Records, numbered
from optimizer.readers.rows import Asked, Reader, Row, at

TEXT = "text"
_PAIR = "text_pair"

Tokenize = Callable[[str, str | None], Row]


@dataclass(frozen=True)
class TextReader(Reader):
    """What the tokenizer makes of each text: arrays by input name, each with a sample axis of 1 first."""

    records: Records
    asked: Asked
    tokenizer: FolderTokenizer | None

    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        with self._opened() as tokenize:
            for number, record in at(chosen, enumerate(self.records, 1)):
                text, pair = self.records.value(record, TEXT, number), record.get(_PAIR)
                if not isinstance(text, str) or not isinstance(pair, str | None):
                    raise InputError(f"Row {number:,} of {self.name} holds something that is no text.", "Put texts in quotes.")
                row = tokenize(text, pair)
                yield {spec.name: _with_sample_axis(row[spec.name], len(spec.shape)) for spec in self.asked.wanted if spec.name in row}

    def _opened(self) -> AbstractContextManager[Tokenize]:
        if self.tokenizer is not None:
            return nullcontext(self.tokenizer.opened())
        reference = self.asked.preprocessing.tokenizer
        assert reference is not None
        return user_tokens(reference, self.asked.folder)


def _with_sample_axis(array: NDArray[Any], rank: int) -> NDArray[Any]:
    return array[np.newaxis] if array.ndim == rank - 1 else array


def text(path: Path, asked: Asked) -> TextReader:
    """The reader of texts.

    Raises:
        InputError: no tokenizer is named, and the model is no folder that brings one.
    """
    records = Records(path)
    length, found = records.counted()
    names = label_names(asked.model) if asked.model is not None and asked.model.is_dir() else {}
    labels, told = numbered(found, names, path.name) if found is not None else (None, "")
    tokenizer = None if asked.preprocessing.tokenizer is not None else folder_tokenizer(asked, path.name)
    digest = sha256_of_file(path)
    if tokenizer is not None:
        digest = hashlib.sha256(f"{digest} {tokenizer.sha256} {tokenizer.note}".encode()).hexdigest()
    notes = tuple(note for note in (told, tokenizer.note if tokenizer is not None else "") if note)
    return TextReader(records, asked, tokenizer, name=path.name, sha256=digest, length=length, labels=labels, notes=notes)
