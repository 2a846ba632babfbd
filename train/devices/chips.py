"""The peaks of accelerators, by their makers' figures."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """An accelerator.

    Attributes:
      name: as people say it.
      peak_flops: of dense matrix products in bfloat16 with sums in float32, FLOP/s.
      hbm_bytes: its memory, a part of which the runtime reserves.
    """

    name: str
    peak_flops: float
    hbm_bytes: int


# TPUs: Google Cloud's pages 'TPU v4', 'TPU v5e', 'TPU v5p' and 'TPU v6e', their tables of
# specifications. GPUs: NVIDIA's data sheets of the A100, of the H100 and of the H200, SXM; where
# these give figures with sparsity, half of them: H100 and H200, 1,979 TFLOP/s, 989.4 in 'NVIDIA
# H100 Tensor Core GPU Architecture'. All of them say GB of what the devices count in GiB.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB),
        Chip("v5e", 197e12, 16 * GIB),
        Chip("v5p", 459e12, 95 * GIB),
        Chip("v6e", 918e12, 32 * GIB),
        Chip("A100", 312e12, 80 * GIB),
        Chip("A100-40GB", 312e12, 40 * GIB),
        Chip("H100", 989.4e12, 80 * GIB),
        Chip("H200", 989.4e12, 141 * GIB),
    )
}

# Whole names: part of one would also take a card of another speed ('NVIDIA H100 PCIe', 'NVIDIA
# H200 NVL') or a slice of a card ('NVIDIA A100-SXM4-40GB MIG 1g.5gb').
_BY_KIND = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-PCIE-40GB": "A100-40GB",
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
}


def find(device_kind: str) -> Chip | None:
    """Returns the chip of a device; None if it is not among `CHIPS`.

    Args:
      device_kind: what JAX calls it, `jax.Device.device_kind`.
    """
    name = _BY_KIND.get(device_kind)
    return None if name is None else CHIPS[name]
