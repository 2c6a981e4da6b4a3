"""CORE's prompts and losses against lm-evaluation-harness on the same weights, item by item.

Theirs are the prompts (their task files), the split into context and continuation, the logits (transformers' NanoChat) and the grading; ours is
everything else. Both read one model.safetensors, as stages write it. Left out where lm_eval is not installed: docs/how-to/core.md says how to.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from model_cases import config
from test_reference import CLASSIC, grown, reference_of

from nanochat.data import readers_core
from nanochat.data.core import CORE_TASKS
from nanochat.eval.core.bundle import IclTask
from nanochat.eval.core.prompts import item_of
from nanochat.eval.core.scoring import score_items
from nanochat.model.config import ModelConfig
from nanochat.model.gpt import GPT
from nanochat.model.weights import load_weights, save_weights
from nanochat.tokenizer import Tokenizer, train_tokenizer

harness = pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra harness, docs/how-to/core.md)")

TEXT = "Which animal barks? The dog barks at the cat, the cow gives milk. A man sits on a roof. He starts pulling. Question: Answer: 1 2 35 " * 6
# rows as the datasets publish them, with what is awkward in them
ARC = [
    {"query": f"Question: {question}\nAnswer:", "question": question, "choices": choices, "gold": gold}
    for question, choices, gold in (
        ("Which animal barks?", ["The dog", "The cow", "The cat", "The roof"], 0),
        ("How many are 1 and 2?", ["35", "3", "12", "2 or 1"], 1),
        ("Which café is “open”?", ["café", "none", "(both)", "…"], 3),
        ("Who gives milk", ["a cow", "a cow gives", "the cow"], 2),
    )
]
HELLASWAG = [
    {
        "activity_label": "Roof",
        "ctx_a": "A man sits on a roof.",
        "ctx_b": "he",
        "endings": ["starts pulling.", "is a cat.", "barks.", "gives milk  twice."],
        "label": "0",
    },
    {
        "activity_label": "Work World",
        "ctx_a": "[header] How to bark [title] Sit. [step] Then",
        "ctx_b": "",
        "endings": ["[step] the dog [title] barks", "a CAT", "12", "the cow."],
        "label": "2",
    },
]
LAMBADA = [{"query": "The dog barks at the", "choices": ["cat"]}, {"query": "“The cow,” he said, “gives", "choices": ["milk"]}]
BEGINNINGS = [" ".join(TEXT.split()[:count]) for count in range(2, 40)]


def loaded(name: str) -> dict[str, Any]:
    """One of the harness' task files; `!function` names a function beside it."""
    folder = Path(harness.__file__).parent / "tasks" / name.partition("_")[0]

    class Loader(yaml.SafeLoader):
        """With functions."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    content: dict[str, Any] = yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    if "process_docs" in content:
        from lm_eval.tasks.hellaswag.utils import process_docs

        content["process_docs"] = process_docs
    return content


def theirs(name: str, docs: list[dict[str, Any]], model: torch.nn.Module, tokenizer: Tokenizer, vocab_size: int) -> list[dict[str, Any]]:
    """What the harness says of each row: `resps` are (log likelihood, whether greedy) of each choice."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    class Reference(TemplateLM):
        """Transformers' model behind the harness' requests."""

        eot_token_id = tokenizer.bos

        def tok_encode(self, string: str, **kwargs: Any) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            found = []
            for _, context, continuation in requests:
                ids = torch.tensor([[tokenizer.bos, *context, *continuation]])
                with torch.no_grad():
                    logits = model(ids).logits[0, -len(continuation) - 1 : -1, :vocab_size].double()
                wanted = torch.tensor(continuation)
                found.append((float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all())))
            return found

        def loglikelihood_rolling(self, requests: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    content = loaded(name)
    split = content.get("test_split") or content["validation_split"]
    rows: Callable[..., Any] = lambda **_: datasets.DatasetDict({split: datasets.Dataset.from_list(docs)})  # noqa: E731
    task = ConfigurableTask(config={**content, "training_split": None, "validation_split": None, "test_split": split, "custom_dataset": rows})
    known = TaskManager(include_defaults=False)  # they would read 14,000 task files, most of the work of this test
    found = simple_evaluate(model=Reference(), tasks=[task], num_fewshot=0, log_samples=True, bootstrap_iters=0, task_manager=known)
    samples: list[dict[str, Any]] = sorted(found["samples"][content["task"]], key=lambda sample: sample["doc_id"])
    return samples


def shape_for(tokenizer: Tokenizer) -> ModelConfig:
    """The classic recipe, which transformers knows."""
    return config(CLASSIC, vocab_size=tokenizer.vocab_size, sequence_len=96)


def compare(label: str, name: str, ours: list[dict[str, Any]], docs: list[dict[str, Any]], tokenizer: Tokenizer, weights: Path) -> tuple[int, int]:
    """Assert that both say the same of every row; how many rows there are, and in how many CORE's rule (mean) chooses another than theirs (sum)."""
    model = GPT(shape_for(tokenizer))
    load_weights(model, weights)
    said = theirs(name, docs, reference_of(model), tokenizer, tokenizer.vocab_size)
    task = IclTask(label, CORE_TASKS[label].kind, 0, CORE_TASKS[label].delimiter, 0.0, ours, "")
    others = 0
    for index, sample in enumerate(said):
        item = item_of(task, ours, index, tokenizer, max_tokens=model.config.sequence_len)
        (scored,) = score_items(model, [item])
        resps = [response[0] if isinstance(response[0], (list, tuple)) else response for response in sample["resps"]]
        if item.gold is None:
            assert scored.is_greedy == bool(resps[0][1]) == bool(sample["acc"])
            continue
        sums = [loss * (len(ids) - start) for loss, ids, start in zip(scored.losses, item.sequences, item.starts, strict=True)]
        # theirs count the tokens too that all choices begin with: the same number in each
        shifts = [total + float(response[0]) for total, response in zip(sums, resps, strict=True)]
        assert max(shifts) - min(shifts) < 1e-3, (label, index, sums, resps)
        assert float(sums.index(min(sums)) == item.gold) == sample["acc"]
        others += scored.choice != sums.index(min(sums))
    return len(said), others


def words_it_would_say(model: GPT, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Passages that end with the word that the model itself finds likeliest, where that is a word of one token."""
    found = []
    for text in BEGINNINGS:
        token = int(model(torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]]))[0, -1].argmax())
        word = tokenizer.decode([token])
        if word[:1] == " " and word[1:].isalpha() and tokenizer.encode(text + word) == [*tokenizer.encode(text), token]:
            found.append({"query": text, "choices": [word[1:]]})
    return found


def test_three_tasks_are_scored_as_the_harness_scores_them(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_json(train_tokenizer([TEXT], 320))
    model, weights = grown(shape_for(tokenizer)), tmp_path / "model.safetensors"
    save_weights(model, weights)
    raw = [{"question": row["question"], "choices": {"text": row["choices"], "label": list("ABCD")[: len(row["choices"])]}} for row in ARC]
    published = [{**row, "answerKey": "ABCD"[known["gold"]]} for row, known in zip(raw, ARC, strict=True)]
    assert compare("arc_easy", "arc_easy", [readers_core.arc(row) for row in ARC], published, tokenizer, weights)[0] == len(ARC)
    assert compare("hellaswag_zeroshot", "hellaswag", [readers_core.hellaswag(row) for row in HELLASWAG], HELLASWAG, tokenizer, weights)[0] == len(HELLASWAG)
    passages = [*LAMBADA, *words_it_would_say(model, tokenizer)]
    assert len(passages) > len(LAMBADA), "some are right"
    texts = [{"text": f"{row['query']} {row['choices'][0]}"} for row in passages]
    assert compare("lambada_openai", "lambada_openai", [readers_core.lambada(row) for row in passages], texts, tokenizer, weights)[0] == len(passages)
    # the comparison sees a prompt that is another
    changed = [json.loads(json.dumps(readers_core.arc(row)).replace("Question", "Problem")) for row in ARC]
    with pytest.raises(AssertionError):
        compare("arc_easy", "arc_easy", changed, published, tokenizer, weights)
