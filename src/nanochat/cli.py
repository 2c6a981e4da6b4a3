"""`nanochat <verb> --flag value ...`: one verb per stage, and `chat` to talk to a finished model.

A stage's flags are the keys of its Snakemake rule. Exit codes: 0 all outputs complete; 2 bad input (one sentence
on stderr); 75 stopped on purpose with resume state saved, run again to go on; 130 Ctrl-C; 141 nobody reads what it prints;
anything else is a defect.
"""

import errno
import importlib
import os
import sys
from typing import NoReturn

from nanochat import __version__, progress
from nanochat.errors import Stopped, UserError
from nanochat.launch.flags import read_launch_flags
from nanochat.launch.supervisor import supervise
from nanochat.runtime import let_threads_sleep, own_rank, under_torchrun

VERBS = {
    "preflight": ("nanochat.stages.preflight", "check all that a later stage can die of, before GPUs are paid"),
    "fetch": ("nanochat.stages.fetch", "fetch a source into resources/"),
    "prepare": ("nanochat.stages.prepare", "filter, deduplicate and decontaminate the text of a corpus"),
    "tokenizer": ("nanochat.stages.tokenizer", "train a byte-level BPE tokenizer and measure it"),
    "tokenize": ("nanochat.stages.tokenize", "turn text shards into packed token shards"),
    "base_train": ("nanochat.stages.base_train", "pretrain a model on packed tokens"),
    "mid_train": ("nanochat.stages.mid_train", "go on with conversations, loss on every token"),
    "chat_sft": ("nanochat.stages.chat_sft", "fine-tune on the assistant's tokens"),
    "chat_rl": ("nanochat.stages.chat_rl", "reinforcement learning on problems that can be graded"),
    "evaluate": ("nanochat.stages.evaluate", "score one model on one task"),
    "contamination": ("nanochat.stages.contamination", "how much of each evaluation stands in the training text"),
    "report": ("nanochat.stages.report", "write the report from JSON files"),
    "data": ("nanochat.inventory.command", "list, fetch, verify, pack, unpack, show and clear away what runs read"),
    "plan": ("nanochat.plan.command", "say what a run would do and cost, before anything is spent"),
    "ranks": ("nanochat.stages.ranks", "check a run at any number of ranks, on this machine and without data"),
    "bench": ("nanochat.bench.command", "how fast this machine trains, generates and prepares data"),
    "status": ("nanochat.status.status", "what every run is doing"),
    "runs": ("nanochat.status.runs", "what every attempt of every run cost"),
    "compare": ("nanochat.stages.compare", "whether one of two models is better, on the rows that both answered"),
    "watch": ("nanochat.watch.command", "the curves of runs in the terminal, while they train"),
    "chat": ("nanochat.serve.terminal", "talk to a finished phase of a run"),
}
SUPERVISED = ("base_train", "mid_train", "chat_sft", "chat_rl")  # run as ranks below a supervisor
SHARED_OUT = ("evaluate",)  # likewise, where there is more than one rank: most evaluations are short, and a supervisor is one more process to start
# They only print: a reader that leaves, as head does, ends them in silence
SPEAKERS = ("bench", "compare", "data", "plan", "preflight", "ranks", "status", "runs", "watch")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRONG_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h
EXIT_NOBODY_READS = 128 + 13  # as a shell says of SIGPIPE


def usage() -> str:
    """The page of `nanochat --help`."""
    lines = [f"  {verb:<11} {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(["usage: nanochat VERB [--flag value ...]; nanochat VERB --help", "", *lines])


def main(arguments: list[str] | None = None) -> None:
    """Run one verb and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "--version"):
        try:
            print(__version__ if verb == "--version" else usage(), flush=True)
        except BrokenPipeError:
            _end_unread()
        sys.exit(0)
    if verb not in VERBS:
        _fail(f"{verb!r}: no such verb; choose one of {', '.join(VERBS)}")
    let_threads_sleep()
    try:
        if not under_torchrun() and not {"-h", "--help"} & set(arguments) and _has_ranks(verb, arguments[1:]):
            sys.exit(supervise(verb, arguments[1:]))
        progress.attach()
        progress.enter("import")
        module = importlib.import_module(VERBS[verb][0])
        progress.enter("config")
        progress.wait_for_turn()
        module.main(arguments[1:])
    except UserError as error:
        _fail(str(error))
    except Stopped as stopped:
        if own_rank() == 0:  # all ranks stop together
            print(f"nanochat {verb}: {stopped}", file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED)
    except OSError as error:
        if error.errno == errno.EPIPE and verb in SPEAKERS:
            _end_unread()
        if error.errno in WRONG_PLACE:
            _fail(f"{error.filename or 'a file'}: {(error.strerror or '').lower()}; give another path, or make this one readable and writable, and run again")
        if error.errno not in DISK_FULL:
            raise
        _fail(f"{error.filename or 'an output'}: could not be written ({error.strerror}); free some space and run again, nothing finished is lost")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        why = f"not enough memory ({(str(error).splitlines() or ['refused'])[0][:200]})"
        _fail(f"{why}; lower micro_batch_rows or batch_rows, or the size of the model, or take a larger machine")
    except KeyboardInterrupt:
        sys.exit(130)


def _has_ranks(verb: str, arguments: list[str]) -> bool:
    return verb in SUPERVISED or (verb in SHARED_OUT and read_launch_flags(verb, arguments).ranks > 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, the CPU or a GPU has refused memory; torch says so with errors of its own, known by name without importing it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _end_unread() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
    sys.exit(EXIT_NOBODY_READS)


def _fail(sentences: str) -> None:
    progress.let_rank_0_speak()
    for sentence in sentences.splitlines():
        print(f"nanochat: error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)
