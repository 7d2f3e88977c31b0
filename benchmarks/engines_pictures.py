"""Rendered text for the three models that read it: lines, lines that may stand on their head, and pages of lines.

Drawn with Pillow's own font; words come from the prose of `engines_data`, so the parts share neither words' order nor seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.engines_data import Array, Feeds, Part, paragraphs, seeded

PAGE = (480, 640)
"""Height and width of a page."""


def lines(part: Part, count: int) -> Iterator[Feeds]:
    """One line each, as the recognizer takes it: float32 (1, 3, 48, 320) in -1 to 1, short lines padded with zeros."""
    draw = seeded(part)
    for _ in range(count):
        yield {"x": _fitted(_line(part, draw, int(draw.integers(8, 30))), 320)}


def turned_lines(part: Part, count: int) -> Iterator[Feeds]:
    """One line each, every second one on its head: float32 (1, 3, 48, 192)."""
    draw = seeded(part)
    for number in range(count):
        line = _line(part, draw, int(draw.integers(4, 18)))
        yield {"x": _fitted(line.rotate(180) if number % 2 else line, 192)}


def pages(part: Part, count: int) -> Iterator[Feeds]:
    """Pages of lines at several sizes, some aslant: float32 (1, 3, 480, 640) in -1 to 1."""
    draw = seeded(part)
    for _ in range(count):
        paper = _colour(draw, 170, 256)
        page = Image.new("RGB", PAGE[::-1], paper)
        y = int(draw.integers(4, 40))
        while y < PAGE[0] - 60:
            line = _line(part, draw, int(draw.integers(3, 28)), paper)
            page.paste(line, (int(draw.integers(0, 200)), y))
            y += line.height + int(draw.integers(2, 40))
        slant = float(draw.uniform(-4, 4)) if draw.random() < 0.3 else 0.0
        yield {"x": _normalized(page.rotate(slant, Image.Resampling.BILINEAR, fillcolor=paper), draw)}


def _line(part: Part, draw: np.random.Generator, letters: int, paper: tuple[int, ...] | None = None) -> Image.Image:
    """A line of about so many letters, in a random size and colour, on `paper`."""
    paper = paper or _colour(draw, 150, 256)
    text = _text(part, draw, letters)
    font = ImageFont.load_default(int(draw.integers(11, 44)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(draw.integers(1, 6))
    line = Image.new("RGB", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(line).text((margin - left, margin - top), text, fill=_colour(draw, 0, 110), font=font)
    return line.filter(ImageFilter.GaussianBlur(float(draw.uniform(0.3, 1.0)))) if draw.random() < 0.3 else line


def _text(part: Part, draw: np.random.Generator, letters: int) -> str:
    if draw.random() < 0.2:
        return f"{draw.integers(1, 999)}-{draw.integers(10**4, 10**7)}"[:letters]
    words = paragraphs(part)[draw.integers(len(paragraphs(part)))].split()
    start = int(draw.integers(len(words)))
    text = " ".join((words + words)[start : start + letters])[:letters].strip()
    return "".join(one if one.isascii() and one.isprintable() else "x" for one in text) or "x"


def _colour(draw: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(one) for one in draw.integers(low, high, 3))


def _fitted(line: Image.Image, width: int) -> Array:
    """48 pixels high, at most `width` wide, normalized, zeros to the right."""
    scaled = line.resize((max(8, min(width, round(line.width * 48 / line.height))), 48), Image.Resampling.BILINEAR)
    fitted = np.zeros((1, 3, 48, width), np.float32)
    fitted[..., : scaled.width] = _normalized(scaled)
    return fitted


def _normalized(image: Image.Image, draw: np.random.Generator | None = None) -> Array:
    """Float32 (1, 3, height, width) in -1 to 1, blue first, with a little noise where there is something to draw it with."""
    pixels = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)[None]
    if draw is not None:
        pixels = np.clip(np.round(pixels + draw.normal(0, 3, pixels.shape)), 0, 255)
    return np.ascontiguousarray((pixels / 127.5 - 1.0).astype(np.float32))
