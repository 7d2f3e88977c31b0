"""What tests of every room share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Where the tests run in the background SIGINT is ignored, which the programs that they start would inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and data; a test that needs it is skipped where it is not."""
    folder = Path(os.environ.get("OPTIMIZE_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"the real models and data are not here (OPTIMIZE_ASSETS, default {folder.name} in ../shared)")
    return folder.resolve()
