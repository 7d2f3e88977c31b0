"""A folder with a user's code in it, as `optimize` is called from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from types import MappingProxyType

import pytest


@pytest.fixture
def user(tmp_path: Path) -> Callable[..., Path]:
    """Writes Python files, by path or by name without `.py`, into a folder and returns it."""

    def write(paths: Mapping[str, str] = MappingProxyType({}), **names: str) -> Path:
        for path, text in {**paths, **{f"{name}.py": text for name, text in names.items()}}.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(text))
        return tmp_path

    return write
