"""The GPUs that engines can be built for, as NVIDIA's data sheets and architecture whitepapers state them.

Peaks are dense (no sparsity), in operations/s at boost clock: `fp32` of the CUDA cores, the others of the tensor cores;
`fp16` with FP16 accumulation where a GeForce card has both rates. What a data sheet leaves out is left out here.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernels.target import Target

RTX = "tensorrt-rtx"
"""Feature of a GPU that TensorRT-RTX can build engines for."""

RTX_LISTED = "tensorrt-rtx-listed"
"""Feature of a GPU whose architecture NVIDIA's support matrix of TensorRT-RTX names as well."""

_RTX_FEATURES: Mapping[str, tuple[str, ...]] = {
    "sm_75": (RTX, RTX_LISTED),
    "sm_80": (RTX,),  # builds, but no support matrix names it
    "sm_86": (RTX, RTX_LISTED),
    "sm_89": (RTX, RTX_LISTED),
    "sm_120": (RTX, RTX_LISTED),
    "sm_121": (RTX, RTX_LISTED),
}

_TERA = 1e12


def _gpu(
    name: str,
    device: str,
    compute: str,
    gigabytes: int,
    gigabytes_per_second: float,
    multiprocessors: int,
    **tera: float,
) -> Target:
    """A row of the table: memory in GB, bandwidth in GB/s, peaks in tera-operations/s by precision."""
    return Target(
        name=name,
        kind="gpu",
        compute=compute,
        device=device,
        features=_RTX_FEATURES.get(compute, ()),
        memory=gigabytes * 10**9,
        bandwidth=gigabytes_per_second * 1e9,
        peaks={precision: peak * _TERA for precision, peak in tera.items()},
        cores=multiprocessors,
    )


_ROWS = (
    # Turing
    _gpu("t4", "Tesla T4", "sm_75", 16, 320, 40, fp32=8.1, fp16=65, int8=130),
    _gpu("rtx-2070", "GeForce RTX 2070", "sm_75", 8, 448, 36, fp32=7.5, fp16=59.7, int8=119.4),
    _gpu("rtx-2080", "GeForce RTX 2080", "sm_75", 8, 448, 46, fp32=10.1, fp16=80.5, int8=161.1),
    _gpu("rtx-2080-ti", "GeForce RTX 2080 Ti", "sm_75", 11, 616, 68, fp32=13.4, fp16=107.6, int8=215.2),
    # Ampere
    _gpu("a100", "NVIDIA A100 40GB", "sm_80", 40, 1555, 108, fp32=19.5, fp16=312, bf16=312, int8=624),
    _gpu("a100-80gb", "NVIDIA A100 80GB", "sm_80", 80, 2039, 108, fp32=19.5, fp16=312, bf16=312, int8=624),
    _gpu("a30", "NVIDIA A30", "sm_80", 24, 933, 56, fp32=10.3, fp16=165, bf16=165, int8=330),
    _gpu("a2", "NVIDIA A2", "sm_86", 16, 200, 10, fp32=4.5, fp16=18, bf16=18, int8=36),
    _gpu("a10", "NVIDIA A10", "sm_86", 24, 600, 72, fp32=31.2, fp16=125, bf16=125, int8=250),
    _gpu("a10g", "NVIDIA A10G", "sm_86", 24, 600, 80, fp32=35, fp16=70, bf16=70, int8=140),
    _gpu("a40", "NVIDIA A40", "sm_86", 48, 696, 84, fp32=37.4, fp16=149.7, bf16=149.7, int8=299.3),
    _gpu("rtx-a6000", "NVIDIA RTX A6000", "sm_86", 48, 768, 84, fp32=38.7, fp16=154.8, bf16=154.8, int8=309.7),
    _gpu("rtx-3060", "GeForce RTX 3060", "sm_86", 12, 360, 28, fp32=12.7, fp16=51, bf16=25.5, int8=102),
    _gpu("rtx-3070", "GeForce RTX 3070", "sm_86", 8, 448, 46, fp32=20.3, fp16=81.3, bf16=40.6, int8=162.6),
    _gpu("rtx-3080", "GeForce RTX 3080", "sm_86", 10, 760, 68, fp32=29.8, fp16=119, bf16=59.5, int8=238),
    _gpu("rtx-3090", "GeForce RTX 3090", "sm_86", 24, 936, 82, fp32=35.6, fp16=142, bf16=71, int8=284),
    _gpu("jetson-orin", "Jetson AGX Orin 64GB", "sm_87", 64, 204.8, 16, fp32=5.3, int8=85),
    _gpu("jetson-orin-nx", "Jetson Orin NX 16GB", "sm_87", 16, 102.4, 8, fp32=1.88, int8=25),
    # Ada Lovelace
    _gpu("l4", "NVIDIA L4", "sm_89", 24, 300, 58, fp32=30.3, fp16=121, bf16=121, int8=242),
    _gpu("l40", "NVIDIA L40", "sm_89", 48, 864, 142, fp32=90.5, fp16=181, bf16=181, int8=362),
    _gpu("l40s", "NVIDIA L40S", "sm_89", 48, 864, 142, fp32=91.6, fp16=362, bf16=362, int8=733),
    _gpu("rtx-6000-ada", "NVIDIA RTX 6000 Ada Generation", "sm_89", 48, 960, 142, fp32=91.1, fp16=364.2, bf16=364.2, int8=728.5),
    _gpu("rtx-4070", "GeForce RTX 4070", "sm_89", 12, 504, 46, fp32=29.1, fp16=116.6, bf16=58.3, int8=233.2),
    _gpu("rtx-4080", "GeForce RTX 4080", "sm_89", 16, 716.8, 76, fp32=48.7, fp16=194.9, bf16=97.5, int8=389.9),
    _gpu("rtx-4090", "GeForce RTX 4090", "sm_89", 24, 1008, 128, fp32=82.6, fp16=330.3, bf16=165.2, int8=660.6),
    # Hopper
    _gpu("h100", "NVIDIA H100 SXM", "sm_90", 80, 3350, 132, fp32=67, fp16=989.4, bf16=989.4, int8=1978.9),
    _gpu("h100-pcie", "NVIDIA H100 PCIe", "sm_90", 80, 2000, 114, fp32=51, fp16=756, bf16=756, int8=1513),
    _gpu("h200", "NVIDIA H200", "sm_90", 141, 4800, 132, fp32=67, fp16=989.4, bf16=989.4, int8=1978.9),
    # Blackwell
    _gpu("b200", "NVIDIA B200", "sm_100", 180, 7700, 148, fp32=75, fp16=2250, bf16=2250, int8=4500),
    _gpu("jetson-thor", "Jetson AGX Thor", "sm_110", 128, 273, 20, fp32=8.06),
    _gpu("rtx-5070", "GeForce RTX 5070", "sm_120", 12, 672, 48, fp32=30.9, fp16=123.5, bf16=61.7, int8=246.9),
    _gpu("rtx-5080", "GeForce RTX 5080", "sm_120", 16, 960, 84, fp32=56.3, fp16=225.1, bf16=112.6, int8=450.2),
    _gpu("rtx-5090", "GeForce RTX 5090", "sm_120", 32, 1792, 170, fp32=104.8, fp16=419, bf16=209.5, int8=838),
    _gpu("dgx-spark", "NVIDIA GB10", "sm_121", 128, 273, 48),
    # An architecture without a card: what holds for all of its cards is known, sizes and speeds are not.
    *(
        _gpu(compute, f"any GPU of compute capability {compute[3:-1]}.{compute[-1]}", compute, 0, 0, 0)
        for compute in ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120", "sm_121")
    ),
)

GPUS: Mapping[str, Target] = {row.name: row for row in _ROWS}
"""Every GPU by the word that users give for it."""

ALIASES: Mapping[str, str] = {
    "a100-40gb": "a100",
    "a100-sxm4-40gb": "a100",
    "a100-pcie-40gb": "a100",
    "a100-sxm4-80gb": "a100-80gb",
    "a100-80gb-pcie": "a100-80gb",
    "h100-80gb-hbm3": "h100",
    "h100-sxm": "h100",
    "orin": "jetson-orin",
    "jetson-agx-orin": "jetson-orin",
    "thor": "jetson-thor",
    "jetson-agx-thor": "jetson-thor",
    "gb10": "dgx-spark",
    "a6000": "rtx-a6000",
    "rtx-6000-ada-generation": "rtx-6000-ada",
    "turing": "sm_75",
    "ada": "sm_89",
    "hopper": "sm_90",
    **{name.replace("-", "", 1): name for name in GPUS if name.startswith("rtx-") and name[4:5].isdigit()},
    **{name.removeprefix("rtx-"): name for name in GPUS if name.startswith("rtx-") and name[4:8].isdigit()},
    **{name.replace("_", ""): name for name in GPUS if name.startswith("sm_")},
}
"""Other words for a GPU, to a key of GPUS."""
