"""Talk to a finished model in the terminal.

reads   results/{run}/{stage}/ and the tokenizer it was trained with, below --results
writes  nothing

Answers appear as they are made; what the model lets Python compute is shown as [python] 12*7 -> 84. Ctrl-C stops an
answer, at the prompt it leaves, as Ctrl-D does. A base model is not a chat partner: it goes on with your text.

    /help /clear /temperature X /topk K /quit

by hand: nanochat chat
         nanochat chat -i base -p "The capital of France is"
         nanochat chat --model results/d4/base_train/checkpoints/step-000500/manifest.json
"""

import sys
import unicodedata
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nanochat.artifacts import read_manifest
from nanochat.config import PHASES
from nanochat.errors import UserError
from nanochat.serve.models import choose_phase, choose_run, model_manifest, tokenizer_of

if TYPE_CHECKING:
    from nanochat.serve.dialogue import Dialogue

BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # Unicode's Bidi_Control; joiners are none
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
HELP = """\
/clear           forget this conversation
/temperature X   0: always the likeliest token; 0.6 by default; higher: more surprising
/topk K          choose among the K likeliest tokens; 0: among all
/help            this page
/quit            leave (also Ctrl-D)"""


class Parser(ArgumentParser):
    """A wrong flag is one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"nanochat chat: {message}; see nanochat chat --help")


def main(arguments: list[str]) -> None:
    """Find the model, load it, talk."""
    flags = _flags(arguments)
    if flags.model is None:
        run = choose_run(flags.results, flags.run)
        phase = choose_phase(flags.results, run, flags.phase)
        manifest, said = model_manifest(flags.results, run, phase), f"run {run}, phase {phase}"
    else:
        read_manifest(flags.model, files=["model.json", "model.safetensors"])
        manifest, said = flags.model, str(flags.model)
    tokenizer = tokenizer_of(flags.results, manifest)
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # what cannot be read or shown becomes a question mark, not a crash
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    terminal = Terminal(colour=sys.stdout.isatty())
    dialogue = load(manifest, tokenizer, flags)
    try:
        terminal.note(f"{said}, {sum(weight.numel() for weight in dialogue.engine.model.parameters()) / 1e6:.1f}M parameters")
        if not dialogue.is_chat:
            terminal.note("a base model has not learnt to converse: it goes on with your text")
        if flags.prompt is not None:
            terminal.answer(dialogue, flags.prompt)
        else:
            terminal.note("/help lists the commands")
            converse(terminal, dialogue)
    except BrokenPipeError:  # the reader of a pipe has gone
        sys.stderr.close()


def _flags(arguments: list[str]) -> Namespace:
    parser = Parser(prog="nanochat chat", description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("-i", "--phase", choices=PHASES, help="phase of the model (default: the last that is finished)")
    parser.add_argument("--run", help="run of the experiment (default: the only one)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the results (default: results)")
    parser.add_argument("--model", type=Path, metavar="MANIFEST", help="a model by its manifest, such as one in checkpoints/, instead of run and phase")
    parser.add_argument("-p", "--prompt", help="answer this and end")
    parser.add_argument("-t", "--temperature", type=temperature, default=0.6, help="0: always the likeliest token (default: 0.6)")
    parser.add_argument("-k", "--top-k", type=top_k, default=50, help="choose among so many tokens, 0: all (default: 50)")
    parser.add_argument("--max-new-tokens", type=count, default=256, help="longest answer (default: 256)")
    parser.add_argument("--seed", type=seed, default=0, help="same seed, same words: same answers (default: 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: cuda, else mps, else cpu")
    parser.add_argument("--threads", type=count, help="CPU threads")
    flags = parser.parse_args(arguments)
    if flags.model is not None and (flags.run or flags.phase):
        raise UserError(f"--model={flags.model}: names one model, and --run or --phase another; give one of them")
    if flags.prompt is not None and not flags.prompt.strip():
        raise UserError("-p: empty; give the words to answer")
    return flags


def temperature(text: str) -> float:
    """A temperature; ValueError if it is none."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def top_k(text: str) -> int:
    """A number of tokens to choose among, 0 for all; ValueError if it is none."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def seed(text: str) -> int:
    """What starts a generator of random numbers; ValueError if it is too large for one."""
    value = int(text)
    if not 0 <= value < 1 << 63:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """A number above 0; ValueError if it is none."""
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value


def load(manifest: Path, tokenizer_manifest: Path, flags: Namespace) -> "Dialogue":
    """The model of `manifest`, ready to talk. Imports torch, which takes seconds."""
    from nanochat.engine import Engine
    from nanochat.model.weights import load_model
    from nanochat.runtime import Runtime
    from nanochat.serve.dialogue import Dialogue, Sampling
    from nanochat.tokenizer import Tokenizer

    runtime = Runtime.start(seed=flags.seed, device=flags.device, threads=flags.threads)
    tokenizer = Tokenizer.load(tokenizer_manifest)
    model, description = load_model(manifest, runtime.device, runtime.dtype, inference=True)
    sampling = Sampling(flags.temperature, flags.top_k, flags.max_new_tokens, flags.seed)
    return Dialogue(Engine(model, tokenizer), tokenizer, description["phase"] != "base", sampling)


def converse(terminal: "Terminal", dialogue: "Dialogue") -> None:
    """Questions and commands until the end of input."""
    for line in terminal.lines():
        if line.startswith("/"):
            if command(terminal, dialogue, line):
                return
        else:
            try:
                terminal.answer(dialogue, line)
            except UserError as error:
                terminal.note(str(error))


def command(terminal: "Terminal", dialogue: "Dialogue", line: str) -> bool:
    """Obey a command; whether it was the last."""
    name, _, value = line.partition(" ")
    settings: dict[str, tuple[str, Callable[[str], float | int], str]] = {
        "/temperature": ("temperature", temperature, "a number from 0 up"),
        "/topk": ("top_k", top_k, "a whole number, 0 for all"),
    }
    if name in ("/quit", "/exit"):
        return True
    if name == "/clear":
        dialogue.clear()
        terminal.note("forgotten")
    elif name == "/help":
        terminal.note(HELP)
    elif name in settings:
        field, read, what = settings[name]
        try:
            if value.strip():
                setattr(dialogue.sampling, field, read(value.strip()))
            terminal.note(f"{name[1:]} {getattr(dialogue.sampling, field)}")
        except ValueError:
            terminal.note(f"{line}: not {what}; it stays {getattr(dialogue.sampling, field)}")
    else:
        terminal.note(f"{name}: no such command; /help lists them")
    return False


def printable(text: str) -> str:
    """`text` without control characters, so that a model cannot command the terminal, and without those that reorder what is shown."""
    return "".join(letter for letter in text if letter in "\n\t" or (letter not in BIDI_CONTROLS and unicodedata.category(letter) != "Cc"))


class Terminal:
    """Where words come from and go to: answers to stdout, remarks to stderr."""

    def __init__(self, *, colour: bool) -> None:
        self.dim, self.plain = (DIM, PLAIN) if colour else ("", "")
        self.is_tty = sys.stdin.isatty() and colour
        self.told_of_dropping = False

    def note(self, text: str) -> None:
        """A remark that is not part of an answer."""
        print(f"{self.dim}{text}{self.plain}", file=sys.stderr, flush=True)

    def lines(self) -> Iterator[str]:
        """What the user types, without empty lines, until the end of input or Ctrl-C."""
        if self.is_tty:
            import readline  # noqa: F401 - gives input() its history and its arrow keys
        while True:
            try:
                line = (input("> ") if self.is_tty else next(iter(sys.stdin.readline, ""))).strip()
            except (EOFError, StopIteration, KeyboardInterrupt):
                if self.is_tty:
                    print()
                return
            if line:
                yield line

    def answer(self, dialogue: "Dialogue", text: str) -> None:
        """Print the answer to `text` as it is made. Ctrl-C stops it."""
        pieces = dialogue.ask(text)
        if dialogue.dropped and not self.told_of_dropping:
            self.note("the conversation is longer than the model can read: its oldest turns are forgotten from now on")
            self.told_of_dropping = True
        marks = {"python": f"{self.dim}[python] ", "python_output": "-> ", "text": self.plain}
        shown, last = "text", "\n"
        try:
            for kind, piece in pieces:
                if not piece:
                    continue
                if kind != shown:
                    self._write(("" if last.isspace() or kind == "text" else " ") + marks[kind] + (" " if kind == "text" and not piece[0].isspace() else ""))
                    shown = kind
                self._write(printable(piece))
                last = piece[-1]
        except KeyboardInterrupt:
            self._write(self.plain)
            self.note(" (stopped)")
        finally:
            pieces.close()  # type: ignore[attr-defined]
            self._write(f"{self.plain}\n")

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
