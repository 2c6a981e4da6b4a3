"""The figures of a benchmark as lines for people; --json has all of them."""

from typing import Any

from nanochat.report.text import count, duration, large, percent, size
from nanochat.train.memory import NOT_COUNTED

NAME_WIDTH = 24


def lines(found: dict[str, Any]) -> list[str]:
    """A heading, then one line per figure."""
    pairs = {"train": _train, "infer": _infer, "data": _data}[found["benchmark"]](found)
    return [heading(found["setup"]), *(f"{name:<{NAME_WIDTH}}{value}" for name, value in [*pairs, ("memory at most", _memory(found["peak_memory"]))])]


def heading(setup: dict[str, Any]) -> str:
    """Model and machine."""
    machine = setup["device_name"] or f"{setup['device']}, {setup['threads']} threads"
    return (
        f"{setup['recipe']}: depth {setup['depth']}, width {setup['width']}, T={setup['sequence_len']}, vocabulary {setup['vocab_size']:,}, "
        f"{large(setup['parameters'])} parameters; {machine}, {setup['dtype']}, torch {setup['torch']}"
    )


def rate(found: dict[str, Any]) -> str:
    """3,520 (median of 20; middle half 3,400 to 3,550, best 3,600)"""
    low, high = found["middle_half"]
    return f"{_short(found['median'])} (median of {found['measurements']}; middle half {_short(low)} to {_short(high)}, best {_short(found['best'])})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory(found: dict[str, int]) -> str:
    own = f"{size(found['process_bytes'])} of the process"
    return f"{size(found['gpu_bytes'])} of the GPU, {own}" if "gpu_bytes" in found else own


def _train(found: dict[str, Any]) -> list[tuple[str, str]]:
    first, used = found["first_step"], found["utilisation"]
    if used["value"] is None:
        utilisation = f"not available: {used['unavailable']}"
    else:
        utilisation = f"{percent(used['value'])} of {used['of_flops_per_s'] / 1e9:,.0f} GFLOP/s ({used['of']})"
        if "by_cpu_seconds" in used:
            utilisation += f"; by CPU seconds {percent(used['by_cpu_seconds'])}"
    how = [f"recompute: {found['recompute']}"] * (found["recompute"] != "none") + ["fp8"] * found["fp8"]
    return [
        ("blocks", ", ".join(["compiled" if found["compiled"] else "not compiled", *how])),
        ("tokens per second", rate(found["tokens_per_s"])),
        ("a step", f"{duration(found['step_s'])}, {count(found['batch_tokens'])} tokens in {found['micro_batches']} x {found['micro_batch_rows']} rows"),
        ("model FLOPs", f"{large(found['model_flops_per_token'])} per token, {found['achieved_flops_per_s'] / 1e9:,.1f} GFLOP/s"),
        ("utilisation", utilisation),
        ("time goes to", ", ".join(f"{part} {percent(share)}" for part, share in found["shares"].items())),
        (
            "first step done",
            f"{duration(first['since_process_start_s'])} after the start of the process, {duration(first['cpu_s'])} of CPU "
            f"(model and plan {duration(first['build_s'])}, the step {duration(first['update_s'])})",
        ),
        ("memory estimated", f"{size(found['estimated_memory_bytes'])}{f'; {NOT_COUNTED}' if found['compiled'] or found['fp8'] else ''}"),
    ]


def _infer(found: dict[str, Any]) -> list[tuple[str, str]]:
    shown = [("a row", f"{found['prompt_tokens']} tokens read, {found['new_tokens']} written; temperature {found['temperature']:g}, top-k {found['top_k']}")]
    for batch in found["batches"]:
        rows = f"{batch['rows']} row{'' if batch['rows'] == 1 else 's'}"
        shown += [
            (f"{rows}: read", f"{rate(batch['prefill_tokens_per_s'])} tokens per second"),
            (f"{rows}: first token", f"after {duration(batch['first_token_s'])}"),
            (f"{rows}: written", f"{rate(batch['decode_tokens_per_s'])} tokens per second"),
        ]
    return shown


def _data(found: dict[str, Any]) -> list[tuple[str, str]]:
    encoding, packing, reading = found["encoding"], found["packing"], found["reading"]
    return [
        ("text", f"{found['documents']:,} documents, {size(found['text_bytes'])}"),
        ("encoding", f"{rate(encoding['megabytes_per_cpu_s'])} MB per second of CPU"),
        ("tiktoken's own loop", f"{rate(encoding['tiktoken_megabytes_per_cpu_s'])} MB per second of CPU; ours / its {encoding['of_tiktoken']['median']:.3f}"),
        ("packing", f"{rate(packing['rows_per_cpu_s'])} rows per second of CPU, {packing['tokens_per_cpu_s'] / 1e6:.0f} million tokens"),
        ("reading", f"{reading['rows_per_step']} rows in {reading['read_s'] * 1e6:,.0f} us, {percent(reading['share_of_step'])} of a step"),
    ]
