"""Folders of images: in class folders, whose places in alphabetical order are the labels, or all in one, without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimizer.images import MODES, image_from_file, image_head
from optimizer.model import TensorSpec
from optimizer.readers.rows import Asked, Reader, Row, at, files_in_classes, sha256_of_files

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class ImagesReader(Reader):
    """Images as uint8 of shape (1, height, width, channels), or (1, height, width) for a model without a channel axis."""

    files: tuple[Path, ...]
    mode: str
    flat: bool

    def rows(self, chosen: Sequence[int] | None = None) -> Iterator[Row]:
        for path in at(chosen, self.files):
            pixels = image_from_file(path, self.mode)
            yield {"x": pixels[np.newaxis, ..., 0] if self.flat else pixels[np.newaxis]}


def images(folder: Path, asked: Asked) -> ImagesReader | None:
    """The reader of a folder of images, every head of which is read at once; None where there are none.

    They are converted to the channels that the model takes: 1, 3 or 4, and 3 where that can't be told.
    """
    files, labels = files_in_classes(folder, _ENDINGS)
    if not files:
        return None
    mode, flat = _form(asked)
    return ImagesReader(
        files,
        mode,
        flat,
        name=folder.name,
        sha256=sha256_of_files(files, folder),
        length=len(files),
        labels=labels,
        notes=_remarks(files, mode, folder.name),
    )


def _form(asked: Asked) -> tuple[str, bool]:
    """Pillow's mode, and whether the channel axis is left out."""
    spec = asked.single
    if spec is None or asked.preprocessing.of(spec.name).function is not None:
        return "RGB", False
    return ("L", True) if len(spec.shape) == 3 else (_mode(spec), False)


def _mode(spec: TensorSpec) -> str:
    channels = [size for size in (*spec.shape[1:2], *spec.shape[3:4]) if isinstance(size, int)]
    return next((MODES[size] for size in channels if size in MODES), "RGB")


def _remarks(files: tuple[Path, ...], mode: str, name: str) -> tuple[str, ...]:
    """What was done to the images so that all are of one kind."""
    heads = [image_head(file) for file in files]
    others = Counter(head.mode for head in heads if head.mode != mode)
    turned = sum(head.turned for head in heads)
    notes = []
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        notes.append(
            f"Of the {len(files):,} images in {name} {sum(others.values()):,} are not {mode} as the model takes them ({kinds}): Pillow "
            "converted them, without regard to transparency."
        )
    if turned:
        notes.append(
            f"{turned:,} images in {name} ask viewers to turn them (EXIF orientation): they are read as they are stored, as torchvision "
            "and TensorFlow do. If the model learnt from turned ones, turn the files."
        )
    return tuple(notes)
