"""The CPUs that engines can be built for from here: x86-64 by the extensions that decide which kernels a runtime picks.

The features of each name are those that Intel's and AMD's manuals give the generation; as far as its successors add nothing
that a runtime goes by, they are the same target.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from kernels.target import FEATURES, Target, this_cpu

PREFIX = "cpu:"
"""A word for a CPU other than this one starts so."""

_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
_EIGHT_BITS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Extensions that add products of 8-bit numbers in 32 bits."""


def _cpu(name: str, device: str, *features: str) -> Target:
    """A row of the table: cores, memory and speed differ from machine to machine of one generation, and are left open."""
    return Target(name=f"{PREFIX}{name}", kind="cpu", compute="x86-64", device=f"{device} CPU", features=features)


_AVX512 = ("avx2", "avx512f")
_VNNI = (*_AVX512, "avx512_vnni")

_ROWS = (
    _cpu("sse4", "SSE4"),
    _cpu("avx2", "AVX2", "avx2"),
    _cpu("avx-vnni", "AVX-VNNI", "avx2", "avx_vnni"),
    _cpu("avx512", "AVX-512", *_AVX512),
    _cpu("avx512-vnni", "AVX512-VNNI", *_VNNI),
    _cpu("avx512-bf16", "AVX512-BF16", *_VNNI, "avx512_bf16"),
    _cpu("zen5", "Zen 5", *_VNNI, "avx_vnni", "avx512_bf16"),
    _cpu("amx", "AMX", *_VNNI, "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
)

CPUS: Mapping[str, Target] = {row.name: row for row in _ROWS}
"""Every CPU by the word that users give for it."""

_GENERATIONS: Mapping[str, tuple[str, ...]] = {
    "sse4": ("nehalem", "westmere", "x86-64-v2"),
    "avx2": ("haswell", "broadwell", "skylake", "zen", "zen2", "zen3", "naples", "rome", "milan", "x86-64-v3"),
    "avx-vnni": ("alderlake", "raptorlake", "meteorlake", "arrowlake", "lunarlake", "sierraforest"),
    "avx512": ("skylake-server", "skylake-sp", "skylake-avx512", "x86-64-v4"),
    "avx512-vnni": ("cascadelake", "icelake", "icelake-server", "tigerlake", "rocketlake"),
    "avx512-bf16": ("cooperlake", "zen4", "genoa", "bergamo"),
    "zen5": ("turin",),
    "amx": ("sapphirerapids", "emeraldrapids", "graniterapids"),
}

ALIASES: Mapping[str, str] = {f"{PREFIX}{word}": f"{PREFIX}{name}" for name, words in _GENERATIONS.items() for word in words}
"""Other words for a CPU, to a key of CPUS."""


def named(row: Target) -> Target:
    """A row of the table; where this machine is such a CPU, with what is known of this machine."""
    return replace(this_cpu(), name=row.name) if runs_here(row) else row


def runs_here(target: Target) -> bool:
    """Whether this CPU has exactly the features of the target, so that a runtime picks the same kernels and times and numbers
    measured here are the target's."""
    here = this_cpu()
    return target.kind == "cpu" and target.compute == here.compute and set(target.features) == set(here.features)


def saturates(features: Collection[str]) -> bool:
    """Whether a CPU with these features adds pairs of uint8 x int8 products in 16 bits.

    Without VNNI or AMX the runtimes' kernels use `pmaddubsw`, which adds two neighbouring products with saturation at 32,767:
    255 x (w1 + w2) is more from w1 + w2 = 129 on.
    """
    return _EIGHT_BITS.isdisjoint(features)


def multiplies_bf16(features: Collection[str]) -> bool:
    """Whether a CPU with these features has instructions that multiply BF16."""
    return not _BF16.isdisjoint(features)


def lacking(features: Collection[str], precision: str) -> str | None:
    """Why an engine of this lowest precision, built for a CPU with these features, must not run on this one, or None.

    More features than the target's do no harm, and FP32 needs none: such an engine is only slower.
    """
    here = this_cpu().features
    if precision.startswith("int8") and saturates(here) and not saturates(features):
        return "its INT8 weights use all 8 bits, and this CPU, without VNNI, adds pairs of their products in 16 bits, which saturate"
    if precision == "bf16" and multiplies_bf16(features) and not multiplies_bf16(here):
        return "it computes in BF16, for which this CPU has no instructions"
    return None


def elsewhere(target: Target) -> str:
    """What it means that an engine for another CPU is built here, in words; "" where this CPU is the target."""
    if runs_here(target):
        return ""
    here = this_cpu().features
    more = [feature for feature in FEATURES if feature in here and feature not in target.features]
    less = [feature for feature in FEATURES if feature in target.features and feature not in here]
    parts = [f"has {', '.join(more)} beyond it"] if more else []
    parts += [f"lacks its {', '.join(less)}"] if less else []
    runs = "an engine for it runs here, but on other kernels" if not less else "its kernels can't all run here"
    return (
        f"{target.name} is another CPU than this one, which {' and '.join(parts)}: {runs}. So nothing was timed, the gate ran a "
        "simulation, and what is told of kernels is what this CPU makes of the engine; optimize qualify measures it on the target."
    )
