"""From the word that a user gives to the target that it names."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess

from kernels import cpus, gpus
from kernels.target import Target, this_cpu
from optimizer.errors import UnavailableError

_MAKER = re.compile(r"\b(nvidia|geforce|tesla|quadro)\b")
_SECONDS = 20


def target_from_name(name: str) -> Target:
    """The target that a word names: `cpu` (this one), another CPU by its extensions or generation (`cpu:avx2`, `cpu:zen4` ...), a
    GPU of the table (`l4`, `rtx-4090`, `sm_89` ...), or `auto`: the GPU of this machine where there is one, else its CPU. Case,
    spaces and underscores don't matter.

    Raises:
        UnavailableError: no target is called so; the nearest names are in the remedy.
    """
    word = _plain(name)
    if word == "auto":
        return _this_gpu() or this_cpu()
    if word == "cpu":
        return this_cpu()
    found = _cpu(word) or _gpu(word)
    if found is None:
        raise UnavailableError(f"There is no target called {name!r}.", _nearest(word))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def _cpu(word: str) -> Target | None:
    """The CPU that a word names, as it stands in the table or through an alias."""
    row = cpus.CPUS.get(cpus.ALIASES.get(word, word))
    return cpus.named(row) if row is not None else None


def _gpu(word: str) -> Target | None:
    """The row of the table that a word names, as it stands or through an alias."""
    rows = {_plain(name): target for name, target in gpus.GPUS.items()}
    aliases = {_plain(alias): gpus.GPUS[name] for alias, name in gpus.ALIASES.items()}
    return rows.get(word) or aliases.get(word)


def _nearest(word: str) -> str:
    names = ("cpu", "auto", *cpus.CPUS, *gpus.GPUS)
    known = {_plain(alias): name for alias, name in gpus.ALIASES.items()} | {alias: alias for alias in cpus.ALIASES}
    known |= {_plain(name): name for name in names}
    meant = {told.removeprefix(cpus.PREFIX): name for told, name in known.items()} | known
    close = dict.fromkeys(meant[found] for found in difflib.get_close_matches(word, meant, n=4, cutoff=0.5))
    return f"Did you mean {' or '.join(close)}?" if close else f"Choose one of {', '.join(names)}."


def _this_gpu() -> Target | None:
    """The first GPU that the NVIDIA driver lists, None where no driver answers.

    Raises:
        UnavailableError: the driver lists a GPU that is not in the table, nor its architecture.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    answer = subprocess.run(
        [command, "--query-gpu=name,compute_cap", "--format=csv,noheader"], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if answer.returncode != 0 or not answer.stdout.strip():
        return None
    device, _, capability = answer.stdout.splitlines()[0].rpartition(",")
    return gpu_from_device(device.strip(), capability.strip())


def gpu_from_device(device: str, capability: str) -> Target:
    """The target of a GPU as its driver names it: (`NVIDIA A100-SXM4-40GB`, `8.0`) is `a100`; a name that is not in the
    table counts by its compute capability.

    Raises:
        UnavailableError: neither is in the table.
    """
    words = _plain(_MAKER.sub(" ", device.lower())).strip("-").split("-")
    for end in range(len(words), 0, -1):
        if found := _gpu("-".join(words[:end])):
            return found
    found = _gpu(_plain(f"sm_{capability.replace('.', '')}"))
    if found is None:
        raise UnavailableError(
            f"This machine's GPU, {device!r} with compute capability {capability}, is not in the table of targets.",
            "Say --target cpu, or name the GPU of the table that is nearest to it.",
        )
    return found
