"""Who may import whom, what may be heavy, and that nothing happens at import. The table is the one of CONTRIBUTING.md."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "nanochat"

COMMANDS = {"bench", "plan", "status", "watch", "preflight", "inventory"}  # for the command line and the workflow alone
UPPER = {"train", "eval", "rl", "serve", "report", *COMMANDS}  # may read sections of the config
BASIS = UPPER | {"model", "optim", "engine", "tokenizer", "config", "data", "tasks", "launch", "mirror"}  # what the lowest modules must not know
# part -> parts that it must not import. A part is a folder or a module directly below the package.
FORBIDDEN: dict[str, set[str]] = {
    "model": UPPER | {"optim", "config", "tokenizer", "engine", "tasks", "data", "launch", "progress"},
    "optim": UPPER | {"model", "config", "tokenizer", "engine", "tasks", "data", "launch", "progress"},
    "data": UPPER | {"model", "optim", "config", "tokenizer", "engine", "tasks", "launch", "progress"},
    "tasks": UPPER | {"model", "optim", "config", "tokenizer", "engine", "launch", "progress"},
    "tokenizer": UPPER | {"model", "optim", "config", "engine", "tasks", "launch", "progress"},
    "engine": UPPER | {"optim", "config", "tasks", "launch", "progress"},
    "train": UPPER - {"train"} | {"launch"},
    "rl": UPPER - {"rl", "train"} | {"optim", "launch"},
    "eval": UPPER - {"eval"} | {"optim", "launch", "progress"},
    "serve": UPPER - {"serve"} | {"optim", "launch", "progress"},
    "report": UPPER - {"report", "eval"} | {"model", "optim", "engine", "tokenizer", "launch", "progress"},
    "status": UPPER - {"status", "report"} | {"model", "optim", "engine", "tokenizer", "data", "tasks", "launch", "progress"},
    "plan": UPPER - {"plan", "train", "rl"} | {"optim", "engine", "tokenizer", "runtime", "launch", "progress"},
    "preflight": UPPER - {"preflight", "plan", "train", "rl"} | {"optim", "engine", "tokenizer", "launch", "progress"},
    "inventory": UPPER - {"inventory", "plan", "status", "preflight", "report"} | {"model", "optim", "engine", "launch", "progress"},
    "watch": UPPER - {"watch", "status", "report"} | {"model", "optim", "engine", "tokenizer", "data", "tasks", "launch", "progress"},
    "bench": UPPER - {"bench", "train", "status", "report"} | {"optim", "launch", "progress"},
    "config": UPPER | {"model", "optim", "engine", "tokenizer", "runtime", "launch", "progress"},
    "mirror": BASIS - {"mirror"} | {"artifacts", "kept", "history", "progress"},
    "history": BASIS | {"runtime", "progress"},
    "kept": BASIS | {"runtime", "progress"},
    "artifacts": BASIS | {"runtime", "progress", "kept"},
    "names": BASIS | {"artifacts", "kept", "progress", "runtime"},
    "launch": BASIS - {"launch"} | {"artifacts", "kept"},
    "progress": BASIS | {"artifacts", "kept"},
    "runtime": BASIS | {"artifacts", "kept", "progress"},
}
HEAVY = {"tensorboard", "wandb", "trackio", "torch", "numpy", "pyarrow", "pandas", "datasets", "huggingface_hub", "matplotlib", "tiktoken", "safetensors"}
# modules that the workflow and the report load; they start in milliseconds
LIGHT = (
    *("nanochat.config", "nanochat.plan", "nanochat.recipes", "nanochat.tasks", "nanochat.data.sources"),
    *("nanochat.artifacts", "nanochat.runtime", "nanochat.launch", "nanochat.cli"),
    *("nanochat.history", "nanochat.status", "nanochat.watch", "nanochat.mirror", "nanochat.preflight", "nanochat.inventory"),
)
WITHOUT_TORCH = (
    *("nanochat.report", "nanochat.stages.report", "nanochat.stages.fetch", "nanochat.stages.prepare", "nanochat.stages.tokenizer"),
    "nanochat.stages.tokenize",
    *("nanochat.preflight", "nanochat.stages.preflight"),
    *("nanochat.eval.chatcore", "nanochat.eval.paired", "nanochat.stages.compare", "nanochat.stages.contamination"),
)
ENVIRONMENT_READERS = {"nanochat.runtime"}  # the one module that may look at the environment


def module_name(path: Path, root: Path) -> str:
    """src/nanochat/train/loop.py -> nanochat.train.loop"""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path = SOURCE) -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    return {module_name(path, root): ast.parse(path.read_text(encoding="utf-8")) for path in sorted((root / "nanochat").rglob("*.py"))}


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, *, top_level: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; `top_level`: only what its import executes. `from a import b` counts as a and a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif _type_checking(node) or (top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        else:
            yield from imports(node, top_level=top_level)


def part(name: str) -> str:
    """The part of the package that a dotted name belongs to: nanochat.train.loop -> train; "" for foreign names."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "nanochat" and len(pieces) > 1 else ""


def violations(found: Mapping[str, ast.Module]) -> list[str]:
    """Imports that the table forbids, as sentences."""
    problems = []
    for name, tree in found.items():
        for target in sorted(set(imports(tree))):
            if part(target) in FORBIDDEN.get(part(name), set()):
                problems.append(f"{name} imports {target}: {part(name)} must not know {part(target)}")
            if part(target) == "stages" and part(name) not in ("stages", "cli"):
                problems.append(f"{name} imports {target}: nothing but the command line knows stages")
            if target.split(".")[0] == "snakemake":
                problems.append(f"{name} imports {target}: the library does not know the workflow")
    return problems


def reached(start: str, found: Mapping[str, ast.Module]) -> set[str]:
    """Every dotted name that importing `start` executes, through modules of the package; parents of a module included."""
    seen: set[str] = set()
    todo = [start, *(name for name in found if name.startswith(f"{start}."))]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        pieces = name.split(".")
        for module in (".".join(pieces[: index + 1]) for index in range(len(pieces))):
            if module in found and (module == name or module not in seen):
                seen.add(module)
                todo += imports(found[module], top_level=True)
    return seen


def foreign(names: set[str], unwanted: set[str]) -> set[str]:
    """The unwanted packages among dotted names."""
    return {name.split(".")[0] for name in names} & unwanted


def test_imports_go_downwards_only() -> None:
    assert violations(modules()) == []


def test_light_modules_reach_nothing_heavy_at_import() -> None:
    found = modules()
    assert {start: heavy for start in LIGHT if (heavy := foreign(reached(start, found), HEAVY))} == {}


def test_report_and_preparation_never_reach_torch() -> None:
    found = modules()
    assert {start for start in WITHOUT_TORCH if start in found and foreign(reached(start, found), {"torch"})} == set()


def test_who_looks_at_results_builds_no_schema() -> None:
    """It takes a fifth of a second, two fifths of the start of nanochat watch."""
    found = modules()
    assert not any(foreign(reached(start, found), {"pydantic"}) for start in ("nanochat.status.status", "nanochat.watch.command"))
    assert foreign(reached("nanochat.config", found), {"pydantic"})


def test_environment_is_read_in_one_module() -> None:
    readers = {name for name, tree in modules().items() for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ"}
    assert readers <= ENVIRONMENT_READERS, "configuration comes from flags; torchrun's and SLURM's variables are read in runtime.py"


def test_files_and_functions_stay_readable() -> None:
    """400 lines a file, 80 a stage's main(), 50 any other function."""
    long = [f"{path.relative_to(SOURCE)}: {lines} lines" for path in PACKAGE.rglob("*.py") if (lines := path.read_text().count("\n")) > 400]
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > (80 if node.name == "main" and part(name) == "stages" else 50):
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert long == []


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in modules().items() if tree.body and not ast.get_docstring(tree)] == []


# --- nothing happens at import ---------------------------------------------------------------------------------------

GUARD = """
import builtins, importlib, io, os, signal, socket, subprocess, sys, tempfile, threading
for heavy in {heavy!r}:  # what these do at import is theirs; ours is judged with them in place
    try: importlib.import_module(heavy)
    except ImportError: pass
real_open, environment, threads = io.open, dict(os.environ), threading.active_count()
handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
def refuse(what):
    def refused(*arguments, **options): raise RuntimeError(f"at import: {{what}} {{arguments[:1]}}")
    return refused
def reading_only(file, mode="r", *arguments, **options):
    if set(mode) & set("wax+"): raise RuntimeError(f"at import: writes {{file}}")
    return real_open(file, mode, *arguments, **options)
builtins.open = io.open = reading_only
class NoSocket(socket.socket):
    def __init__(self, *arguments, **options): raise RuntimeError("at import: a socket")
socket.socket = NoSocket
os.mkdir = os.makedirs = os.remove = os.rename = os.replace = os.system = refuse("a change of the file system")
subprocess.Popen = refuse("a process")
sys.path.insert(0, {root!r})
sys.dont_write_bytecode = True
for name in {names!r}:
    importlib.import_module(name)
    assert dict(os.environ) == environment, f"{{name}} changes the environment"
    assert threading.active_count() == threads, f"{{name}} starts a thread"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers, f"{{name}} catches signals"
    if "torch" in sys.modules: assert not sys.modules["torch"].cuda.is_initialized(), f"{{name}} starts CUDA"
"""
FOREIGN = (
    "torch",
    "numpy",
    "pyarrow.parquet",
    "matplotlib.figure",
    "pydantic",
    "jinja2",
    "tiktoken",
    "safetensors.torch",
    "tqdm",
    "yaml",
    "filelock",
    "psutil",
)


def import_all(root: Path, foreign_first: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Import every module below root/nanochat in one process in which sockets, writing and processes are refused."""
    names = [module_name(path, root) for path in sorted((root / "nanochat").rglob("*.py")) if path.name != "__main__.py"]
    program = GUARD.format(heavy=tuple(foreign_first), root=str(root), names=names)
    return subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=180, check=False)


def test_importing_every_module_has_no_effect() -> None:
    done = import_all(SOURCE, FOREIGN)
    assert done.returncode == 0, done.stderr[-2000:]


# --- the checkers catch what they are for ----------------------------------------------------------------------------


def plant(root: Path, files: Mapping[str, str]) -> dict[str, ast.Module]:
    """A package with these files, parsed."""
    for name, content in {"nanochat/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return modules(root)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model/gpt.py", "from nanochat.optim import muon_adamw"),
        ("model/gpt.py", "import nanochat.config"),
        ("optim/muon.py", "from nanochat.model.gpt import GPT"),
        ("data/rows.py", "from nanochat import tokenizer"),
        ("train/loop.py", "def hook():\n    from nanochat.eval.bpb import bits_per_byte"),
        ("eval/bpb.py", "from nanochat.train import loop"),
        ("report/render.py", "from nanochat.stages import common"),
        ("serve/web.py", "import nanochat.stages.base_train"),
        ("config/schema.py", "import snakemake"),
        ("plan/jobs.py", "from snakemake import dag"),
        ("train/loop.py", "from nanochat.plan import estimate"),
        ("mirror/process.py", "from nanochat.train import metrics"),
    ],
)
def test_planted_import_is_caught(tmp_path: Path, file: str, line: str) -> None:
    found = plant(tmp_path, {f"nanochat/{file}": line})
    assert len(violations(found)) == 1, violations(found)


def test_planted_heavy_import_is_caught_through_another_module(tmp_path: Path) -> None:
    files = {"nanochat/config/__init__.py": "from nanochat.names import NAMES", "nanochat/names.py": "try:\n    import numpy\nexcept ImportError:\n    pass"}
    assert foreign(reached("nanochat.config", plant(tmp_path, files)), HEAVY) == {"numpy"}


def test_heavy_import_inside_a_function_or_for_types_is_allowed(tmp_path: Path) -> None:
    line = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import numpy"
    assert foreign(reached("nanochat.config", plant(tmp_path, {"nanochat/config/__init__.py": line})), HEAVY) == set()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import socket; socket.socket()", "a socket"),
        ("open('left-behind.txt', 'w')", "writes"),
        ("import pathlib; pathlib.Path('left-behind').mkdir()", "a change of the file system"),
        ("import subprocess; subprocess.run(['true'])", "a process"),
        ("import os; os.environ['PLANTED'] = '1'", "changes the environment"),
    ],
)
def test_planted_effect_at_import_is_caught(tmp_path: Path, line: str, words: str) -> None:
    plant(tmp_path, {"nanochat/planted.py": line})
    done = import_all(tmp_path)
    assert done.returncode != 0 and words in done.stderr, done.stderr[-500:]
