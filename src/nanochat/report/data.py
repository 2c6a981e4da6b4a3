"""What the models were trained on: sources with licences, tokenizers against GPT-2 and GPT-4, token shards and what was cut off."""

from typing import Any

from nanochat.data.sources import SOURCES
from nanochat.data.text import treatment
from nanochat.history import cost_of
from nanochat.report import text
from nanochat.report.document import Block, Bullets, Cell, Facts, Fold, Heading, Paragraph, Section, Table, cells
from nanochat.report.inputs import Artifact, Inputs


def data_section(inputs: Inputs) -> Section:
    """Every source with its licence, rows and size."""
    if not inputs.sources:
        return Section("Data", "data", (Paragraph("Not available: no source was handed to this report.", "missing"),))
    rows = [
        cells(item.path.parent.parent.name, item.path.parent.name, licence(item), _split_rows(item), text.size(_output_bytes(item))) for item in inputs.sources
    ]
    total = sum(_output_bytes(item) for item in inputs.sources)
    rows.append(cells("total", "", "", "", text.size(total)))
    blocks: list[Block] = [Table(("Source", "Part", "Licence", "Rows", "On disk"), tuple(rows), text_columns=4)]
    if notes := tuple(_treatment(item) for item in inputs.sources if treatment(item.counts)):
        blocks += [Paragraph("Not taken as it stood when it was fetched:"), Bullets(notes)]
    return Section("Data", "data", (*blocks, *_left_out(inputs)))


def _left_out(inputs: Inputs) -> list[Block]:
    """What the filters of each prepared corpus left out."""
    judged = [item for item in inputs.text if "splits" in item.counts]
    rows = [
        cells(item.path.parent.name, split, reason.replace("_", " "), text.count(count["documents"]), text.size(count["bytes"]))
        for item in judged
        for split, counts in item.counts["splits"].items()
        for reason, count in counts.items()
    ]
    if not rows:
        return []
    said = "What became of the documents of each corpus that was prepared; examples of what was left out stand in removed.json of results/text/CORPUS/."
    return [Paragraph(said), Table(("Corpus", "Split", "Documents that are", "Documents", "Text"), tuple(rows), text_columns=3)]


def _treatment(item: Artifact) -> str:
    return f"{item.path.parent.parent.name}, of {item.counts['documents_read']:,} documents read: {'; '.join(treatment(item.counts))}"


def _split_rows(item: Artifact) -> str:
    rows = item.counts.get("rows", "-")
    return ", ".join(f"{split} {number:,}" for split, number in rows.items()) if isinstance(rows, dict) else str(rows)


def _output_bytes(item: Artifact) -> int:
    return sum(int(stated["bytes"]) for stated in (item.manifest or {}).get("outputs", {}).values())


def licence(item: Artifact) -> Cell:
    """The licence as the manifest states it, else as the registry does, else as the user did."""
    name = item.path.parent.parent.name
    user = item.config.get("user") or {}
    stated = item.counts.get("licence") or item.config.get("licence") or user.get("licence") or (SOURCES[name].licence if name in SOURCES else None)
    return Cell(str(stated)) if stated else text.unavailable("not stated")


def tokens_section(inputs: Inputs) -> Section:
    """Documents, tokens and the share that was cut off, per corpus and split and per chunk."""
    if not inputs.tokens:
        return Section("Tokens", "tokens", (Paragraph("Not available: no token shard was handed to this report.", "missing"),))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in inputs.tokens:
        groups.setdefault((item.path.parent.parent.name, str(item.config.get("split", "-"))), []).append(item.counts)
    rows = [cells(corpus, split, text.count(len(chunks)), *_token_cells(chunks)) for (corpus, split), chunks in groups.items()]
    chunk_rows = [
        cells(item.path.parent.parent.name, item.path.parent.name, str(item.config.get("split", "-")), *_token_cells([item.counts])) for item in inputs.tokens
    ]
    names = ("Documents", "Text", "Rows", "Tokens", "Kept", "Bytes per token", "Cut off")
    blocks: list[Block] = [
        Paragraph("Documents are packed into rows of fixed length, each row beginning with a document; what does not fit is cut off and counted here."),
        Table(("Corpus and tokenizer", "Split", "Chunks", *names), tuple(rows), text_columns=2),
        Fold("Chunks", (Table(("Corpus and tokenizer", "Chunk", "Split", *names), tuple(chunk_rows), text_columns=3),)),
    ]
    return Section("Tokens", "tokens", tuple(blocks))


def _token_cells(chunks: list[dict[str, Any]]) -> tuple[Cell, ...]:
    def total(key: str) -> int | None:
        return sum(chunk[key] for chunk in chunks) if all(chunk.get(key) is not None for chunk in chunks) else None

    documents, text_bytes, tokens, kept, cropped = (total(key) for key in ("documents", "text_bytes", "tokens", "kept_tokens", "cropped_tokens"))
    unknown = Cell("-")
    return (
        Cell(text.count(documents)) if documents is not None else unknown,
        Cell(text.size(text_bytes)) if text_bytes is not None else unknown,
        Cell(text.count(value)) if (value := total("rows")) is not None else unknown,
        Cell(text.count(tokens)) if tokens is not None else unknown,
        Cell(text.count(kept)) if kept is not None else unknown,
        Cell(f"{text_bytes / tokens:.2f}") if text_bytes and tokens else unknown,
        Cell(text.percent(cropped / tokens)) if cropped is not None and tokens else unknown,
    )


REFERENCES = {"gpt2": "GPT-2", "cl100k": "GPT-4"}


def tokenizer_section(inputs: Inputs) -> Section:
    """Vocabulary and compression of each tokenizer, compared with GPT-2 and GPT-4."""
    names = {"vocab_size": "entries", "special_tokens": "of them special", "text_chars": "characters it was made from"}
    blocks: list[Block] = []
    for item in inputs.tokenizers:
        name = item.path.parent.name
        evaluation = inputs.evaluations.get(name) or {}
        if len(inputs.tokenizers) > 1:
            blocks.append(Heading(f"Tokenizer {name}"))
        keys = sorted(item.counts, key=lambda key: [*names, key].index(key))
        facts = [(names.get(key, key.replace("_", " ")), Cell(text.count(item.counts[key]))) for key in keys if isinstance(item.counts[key], int | float)]
        if lengths := evaluation.get("token_bytes"):
            facts.append(
                ("bytes per entry", Cell(f"{lengths['min']} to {lengths['max']}", f"mean {lengths['mean']:.2f}, standard deviation {lengths['std']:.2f}"))
            )
        if attempts := item.attempts:
            facts.append(("wall time", Cell(text.duration(cost_of(attempts).wall_s))))
        blocks += [Facts(tuple(facts)), *_compression(name, evaluation)]
    return Section("Tokenizer", "tokenizer", tuple(blocks or [Paragraph("Not available: no tokenizer was handed to this report.", "missing")]))


def _compression(name: str, evaluation: dict[str, Any]) -> list[Block]:
    """One table per reference vocabulary: the same texts, in how many tokens."""
    references = sorted((name for name in evaluation.get("vocab_size", {}) if name != "ours"), key=[*REFERENCES].index)
    if not references:
        return [Paragraph(f"Comparison with GPT-2 and GPT-4: not available, tokenizer {name} was made without reference vocabularies.", "missing")]
    blocks: list[Block] = [Paragraph("The same texts in tokens. Positive differences mean that ours needs fewer tokens.")]
    for reference in references:
        title = REFERENCES[reference]
        headers = ("Text", "Bytes", f"{title}, tokens", f"{title}, bytes per token", "Ours, tokens", "Ours, bytes per token", "Difference")
        rows = [
            cells(
                row["text"],
                text.count(row["bytes"]),
                text.count(row["tokens"][reference]),
                f"{row['bytes_per_token'][reference]:.2f}",
                text.count(row["tokens"]["ours"]),
                f"{row['bytes_per_token']['ours']:.2f}",
                f"{row['relative_difference_percent'][reference]:+.1f}%",
            )
            for row in evaluation["rows"]
        ]
        sizes = evaluation["vocab_size"]
        blocks.append(Table(headers, tuple(rows), f"Against {title}: {sizes[reference]:,} entries, ours {sizes['ours']:,}"))
    return blocks
