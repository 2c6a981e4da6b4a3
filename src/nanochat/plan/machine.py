"""What a profile says of the machine that a rule's jobs run on: cards, price, time limit. Read from resources, checked, nothing guessed.

Keys, in `set-resources` of a rule or in `default-resources` of a profile; all are whole numbers or names, since Snakemake rounds
fractions and evaluates text:

    gpu               cards of one job on one node (set-resources only)
    gpu_model         the cluster's name for the card; SLURM is asked for it
    gres              in place of both for a job of several nodes: gpu:a100:8, of each node
    gpu_kind          the card, where the cluster's name does not say it: A100, H100, ...
    gpu_tflops        peak in dense bf16, of a card that is not known here
    gpu_memory_gb     memory of one card, where it is not the usual one of its kind
    gpu_price_cents   US cents per card and hour
    nodes             machines of one job
    runtime_limit     the longest that one job may run, in minutes
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.errors import UserError
from nanochat.hardware import ACCELERATORS, OTHER_PRICE, Accelerator, accelerator

MEASURED_KEY = "speed_permille"  # written by the driver into the resources of its jobs, see planner.py
LEAST = {"gpu": 0, "nodes": 1, "runtime_limit": 1, "gpu_price_cents": 0, "gpu_tflops": 1, "gpu_memory_gb": 1, MEASURED_KEY: 1}
GPU_GRES = r"gpu(?::([\w.]+))?:(\d+)"  # the names that snakemake's SLURM plugin takes
OF_CARDS = ("gpu", "gpu_model", "gpu_kind", "gpu_tflops", "gpu_memory_gb", "gpu_price_cents")
ROUNDED = {"gpu_price": "gpu_price_cents"}  # keys that someone may try, and that snakemake would round


@dataclass(frozen=True)
class Facts:
    """The machine of one rule's jobs."""

    gpus: int = 0
    nodes: int = 1
    card: Accelerator | None = None  # None: a CPU, or a card that nothing is known of
    card_name: str | None = None
    runtime_limit: int | None = None  # minutes; None: no limit
    price: float | None = None  # US dollars per card and hour; None without a card
    price_source: str = ""
    measured: float | None = None  # handed down by the driver

    @property
    def unknown(self) -> str | None:
        """Why speed and memory of the cards cannot be told, or None."""
        if not self.gpus or self.card:
            return None
        return f"{self.card_name or 'the kind of GPU'} is not known; set gpu_kind in the profile to one of {known_cards()}, or gpu_tflops and gpu_memory_gb"

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one card."""
        return None if self.card is None else self.card.memory_gib << 30


def known_cards() -> str:
    """Names of the cards whose speed is known."""
    return ", ".join(kind.name for kind in ACCELERATORS)


def read_facts(rule: str, resources: Mapping[str, Any], *, price_of_experiment: float = 0.0) -> Facts:
    """Facts of a rule from its raw resources. Raises UserError: rule, key, value and what to write."""
    for wrong, right in ROUNDED.items():
        if wrong in resources:
            raise UserError(f"profile: {rule}.{wrong}={resources[wrong]}: snakemake rounds it to whole numbers; write {right}")
    if unknown := [key for key in resources if key.startswith("gpu") and key not in OF_CARDS]:
        raise UserError(f"profile: {rule}.{unknown[0]}: no such key; those of cards are {', '.join(OF_CARDS)}")
    numbers = {key: _number(rule, key, resources[key], least) for key, least in LEAST.items() if key in resources}
    nodes, gpus, limit = numbers.get("nodes", 1), numbers.get("gpu", 0), numbers.get("runtime_limit")
    if nodes > 1 and gpus:
        cure = "with several nodes give gres (as in gpu:a100:8, of each node) in place of gpu and gpu_model"
        raise UserError(f"profile: {rule}.nodes={nodes}, gpu={gpus}: {cure}")
    if each_node := _gres(rule, resources):
        resources, gpus = {**each_node, **resources}, int(each_node["gpu"])
    card, name = _card(rule, resources, numbers) if gpus else (None, None)
    if gpus and card is None and limit is None:  # jobs run on this very machine
        name = local_gpu() or name
        card = accelerator(name)
    if card and "gpu_memory_gb" in numbers:
        card = replace(card, memory_gib=numbers["gpu_memory_gb"])
    price, source = _price(numbers, card, price_of_experiment) if gpus else (None, "")
    measured = numbers[MEASURED_KEY] / 1000 if MEASURED_KEY in numbers else None
    return Facts(gpus * nodes, nodes, card, card.name if card else name, limit, price, source, measured)


def _gres(rule: str, resources: Mapping[str, Any]) -> dict[str, str]:
    """What `gres` says of each node's gpu and gpu_model; nothing without GPUs. One that would be overlooked, so that its job ran on a CPU, is refused."""
    text = str(resources.get("gres", "")).strip()
    if asked := re.fullmatch(GPU_GRES, text):
        return {"gpu": asked[2], **({"gpu_model": asked[1]} if asked[1] else {})}
    if "gpu" in text.lower() or accelerator(text):
        raise UserError(f"profile: {rule}.gres={text}: no GPUs in words that snakemake hands to SLURM; write gpu:a100:8 or gpu:8, of each node")
    return {}


def _number(rule: str, key: str, value: Any, least: int) -> int:
    text = str(value).strip()
    if re.fullmatch(r"[+-]?\d+(\.0+)?", text) and (number := int(float(text))) >= least:
        return number
    raise UserError(f"profile: {rule}.{key}={text}: not a whole number of at least {least}; write a plain number")


def _card(rule: str, resources: Mapping[str, Any], numbers: Mapping[str, int]) -> tuple[Accelerator | None, str | None]:
    if not re.fullmatch(r"[\w.]+", str(model := resources.get("gpu_model", "none"))):
        cure = f"leave gpu_model out and write gpu_kind: {kind.name if (kind := accelerator(str(model))) else 'what it is'}"
        raise UserError(f"profile: {rule}.gpu_model={model}: snakemake hands only letters, digits, _ and . to SLURM; {cure}")
    for key in ("gpu_kind", "gpu_model"):
        if (name := resources.get(key)) is None:
            continue
        kind = accelerator(str(name))
        if kind is None and not {"gpu_tflops", "gpu_memory_gb"} <= set(numbers):
            cure = f"write gpu_kind: one of {known_cards()}, or gpu_tflops and gpu_memory_gb for another card"
            raise UserError(f"profile: {rule}.{key}={name}: not a known GPU; {cure}")
        kind = kind or Accelerator(str(name), 0.0, 0, OTHER_PRICE)
        return replace(kind, peak_flops=numbers.get("gpu_tflops", 0) * 1e12 or kind.peak_flops), str(name)
    return None, None


def _price(numbers: Mapping[str, int], card: Accelerator | None, of_experiment: float) -> tuple[float, str]:
    if "gpu_price_cents" in numbers:
        return numbers["gpu_price_cents"] / 100, "profile"
    if of_experiment > 0:
        return of_experiment, "report.gpu_hour_price"
    return (card.price, f"usual price of {card.name}") if card and accelerator(card.name) else (OTHER_PRICE, "assumed")


def local_gpu(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str | None:
    """Name of the first NVIDIA card of this machine as its driver states it, None where there is none."""
    for file in sorted(folder.glob("*/information")):
        if model := re.search(r"^Model:\s*(.+)$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
            return model[1].strip()
    return None
