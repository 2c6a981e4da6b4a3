"""What no single key shows: names that must exist, licences that must be accepted, batches that must divide."""

from typing import Any

from nanochat.config.schema import NOT_A_SOURCE, Experiment, Run, TaskSettings
from nanochat.config.subtrees import evaluation_rows, resolve_base_train, stage_tasks, task_rows
from nanochat.data.core import CORE, CORE_SOURCES, CORE_TASKS
from nanochat.data.sources import SOURCES
from nanochat.names import NOT_A_RUN, STAGE_OF_PHASE
from nanochat.recipes import RECIPES
from nanochat.tasks import TASKS

NOT_TASKS = ("bpb", CORE)  # what `evaluate:` knows besides the tasks of the registry
SCORED = sorted([*NOT_TASKS, *(name for name, task in TASKS.items() if task.kind != "conversation")])  # what has a score
MIXTURE_ROWS = 4096  # rows in which each source of a mixture has its share: data.rows.MixtureOrder.BLOCK


def find_problems(experiment: Experiment) -> list[str]:
    """One sentence per name that is not defined, use that is not allowed, or batch that does not divide."""
    problems: list[str] = []

    def check(place: str, name: str, known: Any) -> None:
        if name not in known:
            problems.append(f"{place}={name!r}: not defined; choose one of {', '.join(sorted(known)) or 'none, since none is defined'}")

    sources = {*SOURCES, *experiment.sources}
    for name in experiment.sources:
        if name in SOURCES:
            problems.append(f"sources.{name}: this name belongs to a built-in source; choose another")
        elif name in NOT_A_SOURCE:
            problems.append(f"sources.{name}: resources/{name}/ holds something else; choose another name")
    for name, corpus in experiment.corpora.items():
        for source in corpus.sources:
            check(f"corpora.{name}.sources", source, sources)
            if source in SOURCES and not SOURCES[source].is_text:
                problems.append(f"corpora.{name}.sources={source!r}: holds no running text; choose a text source")
            if source in experiment.sources and experiment.sources[source].columns:
                problems.append(f"corpora.{name}.sources={source!r}: holds conversations, no running text; use it in a mixture: task conversations")
            if source in SOURCES and SOURCES[source].licence_unclear and not corpus.accept_unclear_licences:
                cure = f"set corpora.{name}.accept_unclear_licences: true to use it"
                problems.append(f"corpora.{name}.sources={source!r}: licence unclear ({SOURCES[source].licence}); {cure}")
        for source, weight in corpus.weights.items():
            if weight * MIXTURE_ROWS < sum(corpus.weights.values()):
                problems.append(f"corpora.{name}.weights.{source}={weight:g}: less than one row in {MIXTURE_ROWS:,}; raise it or leave the source out")
        problems += _prepare_problems(experiment, name)
        if len(set(corpus.sources)) < len(corpus.sources):
            problems.append(f"corpora.{name}.sources={corpus.sources}: names a source twice; name each once")
    problems += _shard_problems(experiment)
    for name, tokenizer in experiment.tokenizers.items():
        check(f"tokenizers.{name}.corpus", tokenizer.corpus, experiment.corpora)
    for name, run in experiment.runs.items():
        if name in NOT_A_RUN:
            problems.append(f"runs.{name}: results/{name}/ holds something else; choose another name")
        check(f"runs.{name}.corpus", run.corpus, experiment.corpora)
        check(f"runs.{name}.tokenizer", run.tokenizer, experiment.tokenizers)
        check(f"runs.{name}.recipe", run.recipe, RECIPES)
        problems += _keep_problems(f"runs.{name}", run)
        problems += _task_problems(name, run, [source for source, section in experiment.sources.items() if section.columns])
        if not problems:
            problems += _shape_problems(f"runs.{name}.base_train.architecture", run)
            problems += _batch_problems(f"runs.{name}", run, experiment.corpora[run.corpus].sequence_len)
    for name in experiment.report.runs:
        check("report.runs", name, experiment.runs)
    return problems


def _prepare_problems(experiment: Experiment, name: str) -> list[str]:
    prepare, place = experiment.corpora[name].prepare, f"corpora.{name}.prepare"
    if prepare is None or not prepare.decontaminate:
        return []
    unknown = [task for task in prepare.decontaminate_against if task not in (*TASKS, CORE)]
    if unknown:
        return [f"{place}.decontaminate_against={unknown[0]!r}: no such task; choose among {', '.join(sorted((*TASKS, CORE)))}"]
    runs = [run for run in experiment.runs.values() if run.corpus == name]
    if any(task not in (*TASKS, *NOT_TASKS) for run in runs for task in run.evaluate):
        return []  # said below
    if any(settings.split not in TASKS[task].sources for run in runs for task, settings in run.evaluate.items() if task in TASKS):
        return []  # said below
    if any(_core_problems("", run.evaluate[CORE]) for run in runs if CORE in run.evaluate):
        return []  # said below
    if not evaluation_rows(experiment, name):
        return [f"{place}.decontaminate: no run on this corpus evaluates a task that has rows; name tasks in decontaminate_against, or leave it out"]
    return []


def _shard_problems(experiment: Experiment) -> list[str]:
    """Corpora that share a source which comes in shards share its chunks too: each must be made of whole ones."""
    problems = []
    for name, corpus in experiment.corpora.items():
        known = [SOURCES[source] for source in corpus.sources if source in SOURCES]
        if corpus.shards is not None and not any(source.shards for source in known):
            problems.append(f"corpora.{name}.shards={corpus.shards}: none of its sources comes in shards, all of their text is read; leave it out")
    for source in sorted({source for corpus in experiment.corpora.values() for source in corpus.sources if source in SOURCES}):
        if (total := SOURCES[source].shards) is None:
            continue
        users = {name: corpus for name, corpus in experiment.corpora.items() if source in corpus.sources}
        first, chunk = next((name, corpus.chunk_shards) for name, corpus in users.items())
        most = max(corpus.shards or total for corpus in users.values())
        for name, corpus in users.items():
            place, shards = f"corpora.{name}", corpus.shards or total
            if corpus.chunk_shards != chunk:
                cure = f"corpora.{first} cuts {source} into chunks of {chunk}; use the same in both"
                problems.append(f"{place}.chunk_shards={corpus.chunk_shards}: {cure}")
            elif shards != most and shards % chunk:
                cure = f"another corpus reads more of {source}, in chunks of {chunk}; take a multiple of {chunk}"
                problems.append(f"{place}.shards={shards}: {cure}")
    return problems


def _task_problems(name: str, run: Run, chats: list[str]) -> list[str]:
    """Of the tasks of one run. `chats`: sources of the user's own that hold conversations."""
    uses = [(f"runs.{name}.evaluate.{task}", task, settings.split, settings.source) for task, settings in run.evaluate.items() if task not in NOT_TASKS]
    for stage, key in (("mid_train", "mixture"), ("chat_sft", "mixture"), ("chat_rl", "tasks")):
        if getattr(run, stage) is not None:
            uses += [(f"runs.{name}.{stage}.{key}", *use) for use in stage_tasks(run, stage) if stage != "chat_rl" or use[1] == "rl"]
    problems = [
        f"runs.{name}.evaluate.{task}.phases={settings.phases}: run {name} has none of them; choose among {', '.join(run.phases)}"
        for task, settings in run.evaluate.items()
        if settings.phases and not set(settings.phases) & set(run.phases)
    ]
    for place, task, split, source in uses:
        if place.endswith(".chat_rl.tasks") and (task not in TASKS or "rl" not in TASKS[task].sources):
            learnt = [known for known in TASKS if "rl" in TASKS[known].sources]
            problems.append(f"{place}={task!r}: no task of this name has problems to learn from; choose among {', '.join(learnt)}")
        elif task not in TASKS:
            problems.append(f"{place}={task!r}: no such task; choose one of {', '.join(SCORED if '.evaluate.' in place else sorted(TASKS))}")
        elif TASKS[task].kind == "conversation" and place.endswith(f".evaluate.{task}"):
            problems.append(f"{place}: conversations that nobody grades; evaluate another task")
        elif split not in TASKS[task].sources:
            problems.append(f"{place}: task {task} has no split {split!r}; choose one of {', '.join(TASKS[task].sources)}")
        elif ".evaluate." in place and run.evaluate[task].samples and TASKS[task].kind != "generative":
            problems.append(f"{place}.samples={run.evaluate[task].samples}: the task is answered with a letter, drawing says nothing more; leave samples out")
        elif task == "conversations":
            if source not in chats:
                known_chats = f"choose one of {', '.join(chats)}" if chats else "define one under sources: with columns:"
                problems.append(f"{place}.source={source!r}: task conversations reads a source of your own that holds conversations; {known_chats}")
        elif source is not None and source not in (known := TASKS[task].sources[split]):
            cure = f"choose one of {', '.join(known)}" if known else "leave it out, its rows are generated"
            problems.append(f"{place}.source={source!r}: not a source of task {task}, split {split}; {cure}")
    if "bpb" in run.evaluate and (samples := run.evaluate["bpb"].samples):
        problems.append(f"runs.{name}.evaluate.bpb.samples={samples}: bits per byte have no answers; leave samples out")
    problems += _core_problems(f"runs.{name}.evaluate.{CORE}", run.evaluate[CORE]) if CORE in run.evaluate else []
    problems += [
        f"runs.{name}.evaluate.{task}.tasks={settings.tasks}: only task {CORE} is made of several; leave tasks out"
        for task, settings in run.evaluate.items()
        if settings.tasks and task != CORE
    ]
    for key, value in run.evaluate["bpb"].model_dump(include={"split", "source"}, exclude_unset=True).items() if "bpb" in run.evaluate else ():
        if value != "validation":
            problems.append(f"runs.{name}.evaluate.bpb.{key}={value!r}: bits per byte are of the corpus' validation text; leave {key} out")
    return problems


def core_labels(source: str | None) -> list[str]:
    """The tasks of CORE that its source has."""
    return [label for _, label in task_rows(CORE, "test", source)]


def _core_problems(place: str, settings: TaskSettings) -> list[str]:
    """Of task core."""
    problems = []
    if settings.source is not None and settings.source not in CORE_SOURCES:
        problems.append(f"{place}.source={settings.source!r}: not a source of task core; choose one of {', '.join(CORE_SOURCES)}")
    if unknown := [label for label in settings.tasks if label not in CORE_TASKS]:
        problems.append(f"{place}.tasks={unknown[0]!r}: no task of CORE; choose among {', '.join(CORE_TASKS)}")
    elif settings.source in (None, *CORE_SOURCES) and (lacking := [label for label in settings.tasks if label not in core_labels(settings.source)]):
        known = ", ".join(core_labels(settings.source))
        problems.append(f"{place}.tasks={lacking[0]!r}: source {settings.source} does not have it; choose among {known}, or another source")
    elif settings.limit and settings.limit <= (shots := max(CORE_TASKS[label].shots for label in settings.tasks or CORE_TASKS)):
        problems.append(f"{place}.limit={settings.limit}: up to {shots} other rows are shown before each as examples; give {shots + 1} or more")
    if settings.samples:
        problems.append(f"{place}.samples={settings.samples}: nothing is written for CORE, so nothing is drawn; leave samples out")
    if "split" in settings.model_fields_set and settings.split != "test":
        problems.append(f"{place}.split={settings.split!r}: the tasks of CORE have no splits; leave it out")
    return problems


def _keep_problems(place: str, run: Run) -> list[str]:
    """A number of models to keep without the steps between them: none would be kept, in silence."""
    stages = {stage: section.keep for stage in STAGE_OF_PHASE.values() if (section := getattr(run, stage)) is not None}
    cure = "of models that are kept every so many steps, and every is 0; give every, or leave last out"
    return [f"{place}.{stage}.keep.last={keep.last}: {cure}" for stage, keep in stages.items() if "last" in keep.model_fields_set and not keep.every]


def _shape_problems(place: str, run: Run) -> list[str]:
    """Shapes that stage base_train would refuse, after everything before it has been made."""
    shape = resolve_base_train(run.base_train, run.recipe)["architecture"]
    head_dim, kv_heads, width = shape["head_dim"], shape["kv_heads"], shape.get("width")
    if head_dim % 2:
        return [f"{place}.head_dim={head_dim}: odd, the rotary embedding needs pairs; try {head_dim + 1}"]
    if width and width % head_dim:
        return [f"{place}.width={width}: not a multiple of head_dim {head_dim}; try {-(-width // head_dim) * head_dim}"]
    heads = (width or run.base_train.depth * shape["aspect_ratio"] + head_dim - 1) // head_dim
    if kv_heads and heads % kv_heads:
        return [f"{place}.kv_heads={kv_heads}: not a divisor of the {heads} heads; choose one of {[n for n in range(1, heads + 1) if heads % n == 0]}"]
    return []


def _batch_problems(place: str, run: Run, sequence_len: int) -> list[str]:
    problems = []
    base_batch = resolve_base_train(run.base_train, run.recipe)["horizon"]["batch_tokens"]
    if base_batch and (tokens := run.base_train.horizon.tokens or base_batch) < base_batch:
        cure = f"give at least {base_batch}, or a smaller batch_tokens"
        problems.append(f"{place}.base_train.horizon.tokens={tokens}: less than one batch of {base_batch} tokens; {cure}")
    batches = [("base_train.horizon.batch_tokens", base_batch, run.base_train.micro_batch_rows)]
    for stage in ("mid_train", "chat_sft"):
        if (tune := getattr(run, stage)) is not None:
            batches.append((f"{stage}.batch_tokens", tune.batch_tokens or 0, tune.micro_batch_rows))
    for key, batch_tokens, rows in batches:
        step = sequence_len * (rows or 1)
        if batch_tokens and batch_tokens % step:
            near = max(step, round(batch_tokens / step) * step)
            of = f"sequence_len {sequence_len}" + (f" x micro_batch_rows {rows}" if rows else "")
            problems.append(f"{place}.{key}={batch_tokens}: not a multiple of {step} ({of}); try {near}")
    return problems
