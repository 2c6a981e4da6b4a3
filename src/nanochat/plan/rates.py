"""How fast finished stages were here, relative to the published figures: a measured rate always wins.

A rate is read off manifest.json (FLOPs, steps, parameters), model.json (width) and provenance.json (seconds, device, ranks) of results/.
Only stages on the same kind of card count, on a CPU only those of this very host. Of those the newest of the same stage is taken, else
the newest of another stage.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.artifacts import read_json
from nanochat.errors import UserError
from nanochat.hardware import accelerator
from nanochat.plan.estimate import Machine
from nanochat.plan.machine import Facts

STAGES = ("base_train", "mid_train", "chat_sft")
LEAST_S = 20.0  # of training: what was shorter tells of its first slow steps


@dataclass(frozen=True)
class Rate:
    """Speed of one finished stage: 1.0 is as published."""

    run: str
    stage: str
    relative: float
    device: str
    flops_per_s: float  # of all cards, or of all threads, together
    ended: float

    def words(self) -> str:
        """Where a plan says its rate comes from."""
        return f"measured: {self.run} {self.stage} on {self.device}, {self.flops_per_s / 1e12:.3g} TFLOP/s, x{self.relative:.2f} of published"


def read_rates(results: Path) -> list[Rate]:
    """Rates of every finished training stage, oldest first. A folder that cannot be read tells nothing."""
    rates = []
    for manifest in sorted(results.glob("*/*/manifest.json")):
        if manifest.parent.name in STAGES:
            try:
                rate = _rate(manifest)
            except (UserError, OSError, LookupError, TypeError, AttributeError, ValueError, ZeroDivisionError):
                continue  # of another version, or damaged: the stage that needs it will say so
            if rate is not None:
                rates.append(rate)
    return sorted(rates, key=lambda rate: rate.ended)


def _rate(manifest: Path) -> Rate | None:
    counts = read_json(manifest)["counts"]
    attempt = read_json(manifest.with_name("provenance.json"))["attempts"][-1]
    width = read_json(manifest.with_name("model.json"))["architecture"]["width"]
    if attempt["state"] != "finished" or attempt["training_s"] < LEAST_S:
        return None
    machine, device = _machine_of(attempt)
    if machine is None:
        return None
    expected = machine.training_s(flops=counts["flops"], width=width, steps=counts["steps"], params=counts["parameters"])
    seconds = attempt["training_s"]
    return Rate(manifest.parent.parent.name, manifest.parent.name, expected / seconds, device, counts["flops"] / seconds, attempt["end"])


def _machine_of(attempt: dict[str, Any]) -> tuple[Machine | None, str]:
    """The machine that an attempt ran on, None where nothing is published of it."""
    if attempt["device"] == "cpu":
        return Machine(None, cores=attempt["threads"] * attempt["world_size"]), f"cpu of {attempt['host']}"
    card = accelerator(attempt.get("device_name"))
    nodes = int(attempt.get("nodes", 1))
    return (Machine(card, gpus=attempt["world_size"], nodes=nodes), attempt["device_name"]) if card else (None, "")


def rate_for(stage: str, facts: Facts, rates: Iterable[Rate]) -> Rate | None:
    """The rate that counts for a stage on this machine, or None."""
    if facts.gpus:
        here = [rate for rate in rates if facts.card and (kind := accelerator(rate.device)) and kind.name == facts.card.name]
    else:
        here = [rate for rate in rates if rate.device == f"cpu of {socket.gethostname()}"]
    same = [rate for rate in here if rate.stage == stage]
    return next(reversed(same or here), None)
