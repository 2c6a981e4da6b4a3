"""Say what a run of the workflow would do and cost, before anything is spent.

reads   the workflow (a dry run of it), the experiment, the profile, manifests of finished results; never torch
writes  nothing

For each job that would run: why, parameters, tokens, FLOPs, GPUs, memory of a GPU, hours, restarts, GPU-hours, price, disk; then totals,
what has to be fetched first, and what is up to date. Similar jobs stand together; --json has each by itself. Targets are those of
snakemake: stages (base, mid, sft, evaluate, ...) or files. Exit code 2 where a real run would be refused.

by hand: nanochat plan
         nanochat plan --profile slurm
         nanochat plan --configfile configs/gpt2.yaml --profile slurm --json base
"""

import json
import re
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, NoReturn

from nanochat.errors import UserError

PREFIX, WARNING = "nanochat: error: ", "nanochat: warning: "
NOISE = ("Using ", "nanochat: ")  # lines of a dry run that say nothing of why it failed


class Parser(ArgumentParser):
    """A wrong flag is one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"nanochat plan: {message}; see nanochat plan --help")


def main(arguments: list[str]) -> None:
    """Ask the workflow, print, and refuse what it would refuse."""
    flags = _flags(arguments)
    found = ask_workflow(flags)
    print(json.dumps(found["plan"], indent=1, ensure_ascii=False) if flags.json else found["text"], flush=True)
    if problems := found["plan"]["problems"]:
        raise UserError("\n".join(problems))


def _flags(arguments: list[str]) -> Namespace:
    parser = Parser(prog="nanochat plan", description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stages or files, as for snakemake (default: everything)")
    parser.add_argument("--profile", help="the machine: slurm, profiles/gpu, ... (default: this one, without GPUs)")
    parser.add_argument("--configfile", type=Path, help="experiment (default: config.yaml, or the one that the profile names)")
    parser.add_argument("--json", action="store_true", help="every job by itself, as JSON")
    return parser.parse_args(arguments)


def ask_workflow(flags: Namespace) -> dict[str, Any]:
    """{"plan": ..., "text": ...} from a dry run of the workflow. Raises UserError with its sentence where it fails."""
    if not Path("Snakefile").is_file():
        raise UserError("no Snakefile here; change to the project's folder")
    if flags.configfile is not None and not flags.configfile.is_file():
        raise UserError(f"--configfile={flags.configfile}: no such experiment file; give the path of one, such as configs/speedrun.yaml")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "--nocolor", "--logger", "nanochat", "--logger-nanochat-plan", str(file)]
        command += ["--profile", flags.profile] if flags.profile else []
        command += ["--configfile", str(flags.configfile)] if flags.configfile else []
        done = subprocess.run([*command, "--", *flags.targets], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(explain(done.stdout + done.stderr, flags))
        if not file.is_file():
            raise RuntimeError(f"the workflow left no plan: {done.stderr[-2000:]}")
        print("".join(line for line in done.stderr.splitlines(keepends=True) if line.startswith(WARNING)), end="", file=sys.stderr)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def explain(said: str, flags: Namespace) -> str:
    """What a failed dry run said, as one sentence: ours as they stand, Snakemake's in words of what to do."""
    if own := [line.removeprefix(PREFIX) for line in said.splitlines() if line.startswith(PREFIX)]:
        return "\n".join(own)
    if "profile directory given" in said:
        return f"--profile={flags.profile}: no such profile; give the name of a folder that holds a profile.yaml, such as slurm or profiles/gpu"
    if missing := re.search(r"No rule to produce (\S+)", said) or re.search(r"MissingRuleException[^\n]*\n(\S+)", said):
        return f"{missing[1]}: the workflow makes no such thing; give a stage (fetch, tokenizer, tokens, base, mid, sft, evaluate, report) or a file"
    if refused := re.search(r"Resource '(\w+)' was given value '([^']*)'", said):
        return f"profile: {refused[1]}={refused[2]}: not a whole number of at least 0; write a plain number"
    if flags.profile and (absent := re.search(r"No such file or directory: '([^'\n]+)'", said)):
        return f"--profile={flags.profile}: there is no {absent[1]}, which it names; give configfile in it, or --configfile, a file that is there"
    return f"snakemake cannot plan this: {_its_words(said)[:500] or 'it says nothing'}"


def _its_words(said: str) -> str:
    """The sentence in what Snakemake said: behind its usage, inside its report of a rule, at the end of a traceback; else its last lines."""
    said = "\n".join(line.rstrip() for line in said.splitlines() if not line.startswith(NOISE))
    if found := re.search(r"^\S+: error: (.*)", said, re.MULTILINE | re.DOTALL):
        words = f"profile or command line: {found[1]}"
    elif found := re.search(r"in rule (\w+)[^\n]*\nError:\n(.*?)\n(?:Wildcards|Traceback):", said, re.DOTALL):
        words = f"rule {found[1]}: {found[2]}"
    elif raised := re.findall(r"^(?:[\w.]+\.)?\w+(?:Error|Exception):\s*(.+(?:\n.+)*)", said, re.MULTILINE):
        words = raised[-1]
    else:
        words = "\n".join([line for line in said.splitlines() if line.strip()][-3:])
    return re.sub(r"\b\w+Error:\s*", "", " ".join(words.split()))
