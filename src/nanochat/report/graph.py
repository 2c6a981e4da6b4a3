"""Where everything came from: manifests as nodes, the sha256 of the manifests they read as edges, drawn as inline SVG."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from nanochat.config import PHASES, STAGE_OF_PHASE
from nanochat.report.inputs import Artifact, Inputs, Score, Training
from nanochat.report.text import counted

COLUMNS = ("sources", "prepared", "tokenizer", "tokens", "BASE", "MID", "SFT", "RL", "scores")
WIDTH, HEIGHT, GAP_X, GAP_Y, TOP = 142, 38, 36, 10, 26  # of a node, between nodes, and above the first; in SVG units
TITLE_CHARS = 19


@dataclass(frozen=True)
class Node:
    """A box: all parts of one source, all chunks of one corpus, one model, all scores of one phase."""

    key: str
    column: int
    title: str
    subtitle: str


@dataclass(frozen=True)
class Graph:
    """Nodes, edges between their keys, and the inputs that no given manifest explains."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    unexplained: tuple[str, ...]


def build(inputs: Inputs) -> Graph:
    """The graph of every manifest and score of a report."""
    members: dict[str, list[Artifact]] = {}
    for item in (*inputs.sources, *inputs.text, *inputs.tokenizers, *inputs.tokens, *inputs.trainings):
        if item.finished:
            members.setdefault(_key(item), []).append(item)
    owner = {item.sha256: key for key, items in members.items() for item in items}
    nodes = [_node(key, items) for key, items in members.items()]
    edges, unexplained = [], []
    for key, items in members.items():
        for item in items:
            for name, digest in item.inputs.items():
                if owner.get(digest) == key:  # a chunk of prepared text reads the judgement
                    continue
                if digest in owner:
                    edges.append((owner[digest], key))
                elif sentence := _unexplained(inputs, item, name, digest):
                    unexplained.append(sentence)
    for (run, phase), scores in sorted(_score_groups(inputs.scores).items(), key=lambda group: (inputs.runs.index(group[0][0]), PHASES.index(group[0][1]))):
        current = [score for score in scores if not score.outdated]
        done = sum(score.value is not None for score in current)
        nodes.append(Node(f"scores {run} {phase}", len(COLUMNS) - 1, f"{phase.upper()} scores", f"{done} of {len(scores)} tasks, {run}"))
        training = inputs.training(run, phase)
        if training is not None and training.finished and any(score.content.get("model_sha256") for score in current):
            edges.append((_key(training), f"scores {run} {phase}"))
    return Graph(tuple(nodes), tuple(dict.fromkeys(edges)), tuple(dict.fromkeys(unexplained)))


def _score_groups(scores: Iterable[Score]) -> dict[tuple[str, str], list[Score]]:
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.run, score.phase), []).append(score)
    return groups


def _key(item: Artifact) -> str:
    folder = item.path.parent
    if item.stage == "prepare":  # the judgement of a corpus and its chunks are one
        return f"prepare {folder.name if 'chunks' in (item.manifest or {}).get('config', {}) else folder.parent.name}"
    if item.stage in ("fetch", "tokenize"):
        return f"{item.stage} {folder.parent.name}"
    return f"{item.stage} {item.run if isinstance(item, Training) else folder.name}"


def _node(key: str, items: list[Artifact]) -> Node:
    stage, name = key.split(" ", 1)
    if stage == "fetch":
        return Node(key, 0, name, f"{len(items)} parts" if len(items) > 1 else f"{items[0].sha256}"[:12])
    if stage == "prepare":
        return Node(key, 1, name, counted(len(items) - 1, "chunk"))
    if stage == "tokenizer":
        return Node(key, 2, name, f"{items[0].sha256}"[:12])
    if stage == "tokenize":
        return Node(key, 3, name, counted(len(items), "chunk"))
    phase = next(phase for phase in PHASES if STAGE_OF_PHASE[phase] == stage)
    return Node(key, COLUMNS.index(phase.upper()), name, f"{items[0].sha256}"[:12])


def _unexplained(inputs: Inputs, item: Artifact, name: str, digest: str) -> str:
    who = f"{item.stage} {item.run if isinstance(item, Training) else item.path.parent.name}"
    return f"{who}: its input {name} ({digest[:12]}) is not among the files of this report" if not inputs.missing else ""


def svg(graph: Graph) -> str:
    """The graph, one column per kind; columns without a node are left out."""
    used = [index for index in range(len(COLUMNS)) if any(node.column == index for node in graph.nodes)]
    rows = {index: [node for node in graph.nodes if node.column == index] for index in used}
    tallest = max((len(nodes) for nodes in rows.values()), default=1)
    total_height = TOP + tallest * (HEIGHT + GAP_Y)
    place: dict[str, tuple[float, float]] = {}
    for position, index in enumerate(used):
        free = (tallest - len(rows[index])) * (HEIGHT + GAP_Y) / 2
        for line, node in enumerate(rows[index]):
            place[node.key] = (position * (WIDTH + GAP_X), TOP + free + line * (HEIGHT + GAP_Y))
    pieces = [_edge(place[start], place[end]) for start, end in graph.edges]
    pieces += [_box(node, *place[node.key]) for node in graph.nodes]
    pieces += [
        f'<text x="{position * (WIDTH + GAP_X) + WIDTH / 2:g}" y="12" text-anchor="middle" font-size="11" fill="var(--muted)">{COLUMNS[index]}</text>'
        for position, index in enumerate(used)
    ]
    width = max(1, len(used)) * (WIDTH + GAP_X) - GAP_X
    label = f"Provenance: {len(graph.nodes)} groups of files and {len(graph.edges)} connections"
    size = f"max-width:{1.1 * width:g}px;min-width:{0.8 * width:g}px"  # legible on a phone, where it scrolls
    return f'<svg class="graph" style="{size}" viewBox="-1 -1 {width + 2} {total_height + 2:g}" role="img" aria-label="{label}">{"".join(pieces)}</svg>'


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1, x2, y2 = start[0] + WIDTH, start[1] + HEIGHT / 2, end[0], end[1] + HEIGHT / 2
    bend = max(GAP_X / 2, (x2 - x1) / 2)
    path = f"M{x1:g} {y1:g}C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="var(--muted)" stroke-opacity=".45"/>'


def _box(node: Node, x: float, y: float) -> str:
    def short(text: str) -> str:
        return escape(text if len(text) <= TITLE_CHARS else text[: TITLE_CHARS - 1] + "…")

    return (
        f"<g><title>{escape(node.title)}: {escape(node.subtitle)}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="var(--panel)" stroke="var(--line)"/>'
        f'<text x="{x + 8:g}" y="{y + 16:g}" font-size="11.5" fill="var(--ink)">{short(node.title)}</text>'
        f'<text x="{x + 8:g}" y="{y + 30:g}" font-size="10" fill="var(--muted)">{short(node.subtitle)}</text></g>'
    )
