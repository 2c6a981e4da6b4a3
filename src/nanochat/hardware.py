"""What is known of each accelerator: peak speed, memory, price, and how much of the peak training reaches.

Sources: peaks are dense bf16 without sparsity, from the makers' data sheets; prices are usual ones of rented cards, US dollars per card and
hour; utilisation is fitted to published runs (docs/explanation/estimates.md has the table and the error of each).
"""

import re
from dataclasses import dataclass

GIB = 1 << 30
UTILISATION_HALF_WIDTH = 130  # a model this wide reaches half of the best utilisation: kernels too small to fill the card
OTHER_PRICE = 2.00


@dataclass(frozen=True)
class Accelerator:
    """One kind of card. `name` occurs in the device's name (NVIDIA A100-SXM4-80GB) and, in lower case, in a cluster's name for it (a100)."""

    name: str
    peak_flops: float  # per second
    memory_gib: int  # of the usual variant; a cluster's setting or the card itself knows better
    price: float  # US dollars per hour
    best_utilisation: float = 0.5  # of the peak, by a wide model in bf16; 0.5 where nothing is published

    def utilisation(self, width: int) -> float:
        """Expected share of the peak (model FLOPs) in training a model of `width`."""
        return self.best_utilisation * width / (width + UTILISATION_HALF_WIDTH)


# the first name that occurs counts, so the longer ones stand first
ACCELERATORS = (
    Accelerator("A100", 312e12, 80, 1.79, 0.71),
    Accelerator("H100 PCIe", 756e12, 80, 3.00),
    Accelerator("H100 NVL", 835e12, 94, 3.00),
    Accelerator("H100", 989e12, 80, 3.00, 0.53),
    Accelerator("H200", 989e12, 141, OTHER_PRICE, 0.53),
    Accelerator("V100", 15.7e12, 32, 0.55),  # fp32: it has no bf16
    Accelerator("A40", 149.7e12, 48, OTHER_PRICE),
    Accelerator("A30", 165e12, 24, OTHER_PRICE),
    Accelerator("A10G", 70e12, 24, OTHER_PRICE),
    Accelerator("A10", 125e12, 24, OTHER_PRICE),
    Accelerator("L40S", 362e12, 48, OTHER_PRICE),
    Accelerator("L4", 121e12, 24, OTHER_PRICE),
)


def accelerator(name: str | None) -> Accelerator | None:
    """The kind of card that a device's or a cluster's name stands for, None where it is not known: nothing is guessed."""
    return next((kind for kind in ACCELERATORS if re.search(rf"(?<![a-z0-9]){kind.name}(?![0-9])", name or "", re.IGNORECASE)), None)


def peak_flops(device_name: str | None) -> float | None:
    """Peak speed of one device, None where it is not known: nor is that of a slice of a card (MIG), whose name holds the whole card's."""
    kind = None if re.search(r"\bMIG\b", device_name or "") else accelerator(device_name)
    return kind.peak_flops if kind else None


def price_of(device_name: str, configured: float = 0.0) -> float:
    """Price per hour of one GPU: the configured one, else the usual one of its kind."""
    if configured > 0:
        return configured
    kind = accelerator(device_name)
    return kind.price if kind else OTHER_PRICE
