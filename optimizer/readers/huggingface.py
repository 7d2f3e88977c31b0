"""The tokenizer and the label names of a Hugging Face folder: JSON files, read without running any code of the folder's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import InputError, UnavailableError
from optimizer.model import TensorSpec
from optimizer.provenance import sha256_of_file
from optimizer.readers.rows import Asked, Row

FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_CONFIG = "config.json"

_NO_LIMIT = 1 << 30
"""From here on a `model_max_length` says that there is none (transformers writes 1e30)."""

_LENGTHS = ("max_position_embeddings", "n_positions")
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")
"""Models whose positions begin behind the padding's: their tables hold pad_token_id + 1 more than texts may have tokens."""

_UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls classes that nobody named."""


@dataclass(frozen=True)
class FolderTokenizer:
    """tokenizer.json and how it is used: cut at `longest` tokens, padded to `shortest`, for the inputs `names`."""

    file: Path
    sha256: str
    names: tuple[str, ...]
    longest: int | None
    shortest: int | None
    pad: tuple[int, str] | None
    sides: tuple[str, str]
    note: str

    def opened(self) -> Callable[[str, str | None], Row]:
        """The function from a text (and its pair) to int64 arrays of shape (1, tokens).

        Raises:
            InputError: tokenizer.json is damaged; UnavailableError: the tokenizers library is not installed.
        """
        tokenizer = _tokenizer(self.file)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        padding, cutting = self.sides
        if self.longest is not None:
            tokenizer.enable_truncation(self.longest, direction=cutting)
        if self.shortest is not None and self.pad is not None:
            tokenizer.enable_padding(direction=padding, pad_id=self.pad[0], pad_token=self.pad[1], length=self.shortest)

        def tokenize(text: str, pair: str | None) -> Row:
            tokens = tokenizer.encode(text, pair)
            if self.longest is not None and len(tokens.ids) > self.longest:
                raise InputError(f"A text can't be cut to {self.longest} tokens: what the tokenizer adds takes more.", "Allow more.")
            made = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
            return {name: np.array([made[name]], np.int64) for name in self.names if name in made}

        return tokenize


def folder_tokenizer(asked: Asked, data: str) -> FolderTokenizer:
    """How texts of `data` become what the model takes: at their own lengths where the model's are free, else padded and cut.

    Raises:
        InputError: the model is no folder with a tokenizer.json, or padding is needed and the folder names no token for it.
    """
    folder = asked.model
    if folder is None or not (folder / FILE).is_file():
        raise InputError(
            f"{data} holds text, and no tokenizer is at hand: the model is no folder with a {FILE}.",
            "Name yours with --tokenizer file.py:function: a text, or a text and its pair, to a dict of arrays by input name.",
        )
    file = folder / FILE
    settings, config = _json(folder / _SETTINGS), _json(folder / _CONFIG)
    names = tuple(spec.name for spec in asked.wanted)
    shortest, longest = _lengths(asked, settings, config)
    pad = _padding(file, settings, config) if shortest is not None else None
    sha256 = sha256_of_file(file)
    note = f"Texts of {data} go through {FILE} of the model's folder{_told(shortest, longest)}."
    sides = (_side(settings, "padding_side"), _side(settings, "truncation_side"))
    return FolderTokenizer(file, sha256, names, longest, shortest, pad, sides, note)


def label_names(folder: Path) -> dict[str, int]:
    """The model's names of its classes with their numbers, out of config.json; empty where nobody named them."""
    by_number = _json(folder / _CONFIG).get("id2label")
    if not isinstance(by_number, Mapping):
        return {}
    names = {str(name): int(number) for number, name in by_number.items() if str(number).isdigit()}
    return {} if all(_UNNAMED.fullmatch(name) for name in names) else names


def _lengths(asked: Asked, settings: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The fewest and the most tokens of a sample; None where there is no bound."""
    limits = [_whole(settings.get("model_max_length")), *(_whole(config.get(name)) for name in _LENGTHS)]
    if config.get("model_type") in _OFFSET_POSITIONS:
        offset = (_whole(config.get("pad_token_id")) or 0) + 1
        limits[1:] = [limit and limit - offset for limit in limits[1:]]
    known = [limit for limit in limits if limit]
    longest, shortest = min(known) if known else None, None
    for spec in asked.wanted:
        low, high = _asked_lengths(spec, asked)
        shortest = max(low, shortest or 0) if low else shortest
        longest = min(high, longest or high) if high else longest
    return shortest, longest


def _asked_lengths(spec: TensorSpec, asked: Asked) -> tuple[int | None, int | None]:
    if len(spec.shape) < 2:
        return None, None
    if isinstance(spec.shape[1], int):
        return spec.shape[1], spec.shape[1]
    shape = asked.shapes.get(spec.name)
    return (None, None) if shape is None else (shape.smallest[1], shape.largest[1])


def _padding(file: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, str]:
    """The number and the name of the token that fills up short texts."""
    tokenizer = _tokenizer(file)
    named = settings.get("pad_token")
    token = named.get("content") if isinstance(named, Mapping) else named
    number = tokenizer.token_to_id(token) if isinstance(token, str) else _whole(config.get("pad_token_id"))
    name = token if isinstance(token, str) else tokenizer.id_to_token(number) if number is not None else None
    if number is None or name is None:
        raise InputError(
            "The model takes texts of one length, and its folder names no pad_token to fill short ones up with.",
            f"Name it in {_SETTINGS}, or leave the length free.",
        )
    return number, name


def _told(shortest: int | None, longest: int | None) -> str:
    padded = (
        "" if shortest is None else f", padded to {shortest} tokens" if shortest != longest else f", padded and cut to {shortest} tokens"
    )
    return padded if longest is None or shortest == longest else f"{padded}, cut at {longest} tokens"


def _side(settings: Mapping[str, Any], key: str) -> str:
    return "left" if settings.get(key) == "left" else "right"


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _NO_LIMIT else None


def _json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} in the model's folder can't be read: {error}.", "Take the folder as it was published.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} in the model's folder holds no object.", "Take the folder as it was published.")
    return content


def _tokenizer(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UnavailableError("Reading text needs Hugging Face's tokenizers, which is not installed.", "pip install tokenizers") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # a bare Exception is all that the library raises
        raise InputError(f"{file.name} in the model's folder can't be read: {error}.", "Take the folder as it was published.") from None
