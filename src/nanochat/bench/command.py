"""Measure this machine with the real training step, the real engine and the real way of text, without any fetched data.

    train     tokens per second of training, share of the machine's arithmetic, where the time goes, memory, time to the first step
    infer     tokens per second read and written over the KV cache, for one row and for several at once
    data      text to tokens against tiktoken's own loop, packing, reading as a share of a step

reads   nothing: weights are those of a new model, ids are random, text is Python's documentation
writes  nothing that stays

Speeds are medians with their middle half. On a CPU the measure is what matrix products reach in the same process, in turn with the steps.

by hand: nanochat bench train
         nanochat bench train --depth 8 --override architecture.width=512 --threads 2
         nanochat bench train --compile on --override recompute=blocks
         nanochat bench infer --sequence-len 1024 --rows 1 8 32
         nanochat bench data --json
"""

import json
import time
from argparse import ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from typing import Any

from nanochat.runtime import process_age_s
from nanochat.status.console import Parser, printing


def main(arguments: list[str]) -> None:
    """Measure one of them and print."""
    flags = _parser().parse_args(arguments)
    found = _measure(flags)
    with printing():
        if flags.json:
            print(json.dumps(found, indent=1), flush=True)
            return
        from nanochat.bench.show import lines

        for line in lines(found):
            print(line, flush=True)


def _measure(flags: Namespace) -> dict[str, Any]:
    from nanochat.bench.setup import Request, build  # torch is not needed to read flags

    steps_of = {"train": "steps", "infer": "rounds", "data": "rounds"}
    setup = build(
        Request(flags.recipe, flags.depth, flags.override, flags.sequence_len, flags.vocab_size, flags.batch_tokens, device=flags.device, threads=flags.threads)
    )
    count = getattr(flags, steps_of[flags.verb])
    if flags.verb == "train":
        from nanochat.bench.train import measure_training

        return measure_training(setup, steps=count, started_s=time.time() - process_age_s(), compile_=flags.compile)
    if flags.verb == "infer":
        from nanochat.bench.infer import measure_generation

        new, prompt = flags.new_tokens, flags.prompt_tokens
        new = min(64, flags.sequence_len // 2) if new is None else new
        prompt = max(1, min(128, flags.sequence_len - new)) if prompt is None else prompt
        limits = {"prompt_tokens": prompt, "new_tokens": new, "rounds": count}
        return measure_generation(setup, batches=flags.rows, **limits, temperature=flags.temperature, top_k=flags.top_k)
    from nanochat.bench.data import measure_data

    return measure_data(setup, megabytes=flags.megabytes, rounds=count)


def _parser() -> Parser:
    parser = Parser(prog="nanochat bench", description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> Parser:
        sub: Parser = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
        sub.add_argument("--recipe", default="compact-2026-11", help="recipe of hyper-parameters (default: compact-2026-11)")
        sub.add_argument("--depth", type=whole, default=4, help="of the model (default: 4)")
        sub.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="a key of base_train, such as architecture.width=256")
        sub.add_argument("--sequence-len", type=whole, default=512, help="tokens of a row, and of the context (default: 512)")
        sub.add_argument("--vocab-size", type=whole, default=4096, help="entries of the vocabulary (default: 4096)")
        sub.add_argument("--batch-tokens", type=whole, help="tokens of a training step (default: 8 rows, on a GPU 64)")
        sub.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: cuda, else mps, else cpu")
        sub.add_argument("--threads", type=whole, help="CPU threads (default: torch's choice)")
        sub.add_argument("--json", action="store_true", help="for programs: one JSON object with every figure")
        return sub

    trained = verb("train", "the training step")
    trained.add_argument("--steps", type=whole, default=20, help="steps to measure, after two to warm up (default: 20)")
    how = "compile the blocks, as a training stage does: auto (default) means on a GPU"
    trained.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help=how)
    written = verb("infer", "reading prompts and writing answers")
    written.add_argument("--rows", type=whole, nargs="+", default=[1, 8], help="rows at once (default: 1 8)")
    written.add_argument("--prompt-tokens", type=whole, help="tokens of each prompt (default: 128, or what the context leaves)")
    written.add_argument("--new-tokens", type=whole, help="tokens of each answer (default: 64, at most half of the context)")
    written.add_argument("--rounds", type=whole, default=7, help="measurements, after one to warm up (default: 7)")
    written.add_argument("--temperature", type=not_negative, default=0.6, help="0: always the likeliest token (default: 0.6, as nanochat chat)")
    written.add_argument("--top-k", type=whole_from_0, default=50, help="choose among so many tokens, 0: all (default: 50, as nanochat chat)")
    prepared = verb("data", "text to tokens to rows to batches")
    prepared.add_argument("--megabytes", type=above_0, default=4.0, help="text to encode (default: 4)")
    prepared.add_argument("--rounds", type=whole, default=5, help="measurements (default: 5)")
    return parser


def _number(text: str, kind: Any, least: float, *, included: bool, words: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not (value >= least if included else value > least) or value == float("inf"):
        raise ArgumentTypeError(f"{text!r} is not {words}")
    return value


def whole(text: str) -> int:
    """A whole number above 0."""
    return int(_number(text, int, 0, included=False, words="a whole number above 0"))


def whole_from_0(text: str) -> int:
    """A whole number from 0."""
    return int(_number(text, int, 0, included=True, words="a whole number from 0"))


def not_negative(text: str) -> float:
    """A number from 0."""
    return float(_number(text, float, 0, included=True, words="a number from 0"))


def above_0(text: str) -> float:
    """A number above 0."""
    return float(_number(text, float, 0, included=False, words="a number above 0"))
