"""Generation: equal to the model called the slow way, alone or in a batch, with the calculator, within the context."""

import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from model_cases import OFF, ON, config, shaken, some_ids

from nanochat.engine import Engine, TextStream, sample_tokens
from nanochat.model.cache import KVCache
from nanochat.model.config import ModelConfig
from nanochat.model.decode import Decoder, added_product, arranged, product
from nanochat.model.gpt import GPT
from nanochat.recipes import RECIPES

SPECIAL = ["bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start", "python_end", "output_start", "output_end"]
VOCAB = 256 + len(SPECIAL)


class ByteTokenizer:
    """One token per byte, then the special tokens."""

    bos = 256

    def special(self, name: str) -> int:
        return 256 + SPECIAL.index(name)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(bytes([i]) if i < 256 else f"<|{SPECIAL[i - 256]}|>".encode() for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


def small_model(sequence_len: int = 64, pattern: str = "L") -> GPT:
    architecture = {**RECIPES["modern-2026-07"]["architecture"], "head_dim": 16, "aspect_ratio": 16, "window_pattern": pattern, "kv_heads": 1}
    model = GPT(ModelConfig.from_depth(3, vocab_size=VOCAB, sequence_len=sequence_len, architecture=architecture))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)  # outputs start at 0: give them something to say
    return model


class Scripted:
    """A model that says a given text after its prompt, whatever it reads; it stands for a trained one in tool tests."""

    def __init__(self, prompt_len: int, script: list[int], sequence_len: int = 64) -> None:
        self.real = small_model(sequence_len)
        self.config, self.dtype, self.head = self.real.config, self.real.dtype, self.real.head
        self.prompt_len, self.script = prompt_len, script

    def hidden(self, ids: torch.Tensor, cache: object) -> torch.Tensor:
        start = cache.lengths[0]  # type: ignore[attr-defined]
        self.real.hidden(ids, cache)  # type: ignore[arg-type]
        places = torch.arange(start, start + ids.shape[1]) - self.prompt_len + 1
        return places[None, :, None].expand(len(ids), -1, 1).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        places = hidden[..., 0].long().clamp(0, len(self.script) - 1)
        return torch.nn.functional.one_hot(torch.tensor(self.script)[places], VOCAB).float()


def slow_greedy(model: GPT, prompt: list[int], count: int) -> list[int]:
    """The whole sequence through the model for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            token = int(model(torch.tensor([ids]))[0, -1].argmax())
            if token in (256, 260):
                break
            ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize(("sequence_len", "pattern"), [(64, "L"), (512, "SSL")])
def test_greedy_batches_of_unequal_prompts_equal_the_slow_way(sequence_len: int, pattern: str) -> None:
    model = small_model(sequence_len, pattern)
    prompts = [[256, 5, 6, 7, 8, 9], [256, 100], [256, *range(20)], [256] + [7] * (150 if sequence_len > 200 else 11)]
    answers = Engine(model, ByteTokenizer()).generate_batch(prompts, max_new_tokens=25)
    assert answers == [slow_greedy(model, prompt, 25) for prompt in prompts]
    assert all(answers)


def test_sampled_rows_do_not_depend_on_their_batch() -> None:
    engine = Engine(small_model(), ByteTokenizer())
    prompts = [[256, 5, 6, 7], [256, 100], [256, 9, 9, 9, 9, 9, 9, 9]]
    settings = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 50, "seed": 3}
    together = engine.generate_batch(prompts, **settings)  # type: ignore[arg-type]
    alone = [engine.generate_batch([prompt], **settings)[0] for prompt in prompts]  # type: ignore[arg-type]
    assert together == alone


def test_samples_differ_from_their_first_token_and_repeat_with_their_seed() -> None:
    """Seed-era engines sampled the first token once for all rows."""
    engine = Engine(small_model(), ByteTokenizer())
    first = [column.tokens for column in engine.generate([256, 1, 2], samples=12, max_new_tokens=6, temperature=2.0, seed=1)]
    again = [column.tokens for column in engine.generate([256, 1, 2], samples=12, max_new_tokens=6, temperature=2.0, seed=1)]
    other = [column.tokens for column in engine.generate([256, 1, 2], samples=12, max_new_tokens=6, temperature=2.0, seed=2)]
    assert first == again
    assert first != other
    assert len(set(first[0])) > 3


def test_global_randomness_is_left_alone() -> None:
    engine = Engine(small_model(), ByteTokenizer())
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    engine.generate_batch([[256, 1]], max_new_tokens=3, temperature=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_calculator_writes_its_result_and_the_model_goes_on() -> None:
    tokenizer = ByteTokenizer()
    start, end = tokenizer.special("python_start"), tokenizer.special("python_end")
    said = [*b"so ", start, *b"6*7", end]
    script = [*said, 0, 0, 0, 0, *b"ok", tokenizer.special("assistant_end")]
    engine = Engine(Scripted(2, script), tokenizer)  # type: ignore[arg-type]
    columns = list(engine.generate([256, 65], max_new_tokens=40))
    tokens = [column.tokens[0] for column in columns]
    assert tokens == [*said, tokenizer.special("output_start"), *b"42", tokenizer.special("output_end"), *b"ok"]
    assert [column.forced[0] for column in columns] == [False] * 8 + [True] * 4 + [False] * 2


def test_an_expression_without_value_gets_no_output() -> None:
    tokenizer = ByteTokenizer()
    said = [tokenizer.special("python_start"), *b"6*", tokenizer.special("python_end"), *b"hm"]
    engine = Engine(Scripted(1, [*said, tokenizer.special("assistant_end")]), tokenizer)  # type: ignore[arg-type]
    assert engine.generate_batch([[256]], max_new_tokens=40) == [said]


@pytest.mark.parametrize("stop", ["assistant_end", "bos"])
def test_a_row_ends_at_a_stop_token_which_is_not_emitted(stop: str) -> None:
    tokenizer = ByteTokenizer()
    engine = Engine(Scripted(1, [1, 2, tokenizer.special(stop), 3]), tokenizer)  # type: ignore[arg-type]
    generation = engine.generate([256], max_new_tokens=10)
    assert [column.tokens for column in generation] == [[1], [2]]
    assert generation.rows[0].ended == "stop"


def test_rows_that_ended_are_computed_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(small_model(), ByteTokenizer())
    widths: list[int] = []
    extend = engine.extend
    monkeypatch.setattr(engine, "extend", lambda tokens, cache: (widths.append(len(tokens)), extend(tokens, cache))[1])
    prompts = [[256, *range(60)], [256, 1], [256, 2]]
    engine.generate_batch(prompts, max_new_tokens=40)
    assert widths[0] == 3
    assert widths[-1] == 2  # the long prompt met the end of the context


def test_generation_never_exceeds_the_context_and_says_what_was_dropped() -> None:
    engine = Engine(small_model(64), ByteTokenizer())
    generation = engine.generate([256, *range(100)], max_new_tokens=500)
    new = [column.tokens[0] for column in generation]
    assert generation.dropped == [101 - 32]
    assert generation.rows[0].length <= 64
    assert generation.rows[0].ended in ("context", "stop")
    assert len(new) <= 32
    assert engine.fit([256, *range(100)], 500)[0] == [256, *range(69, 100)]
    assert engine.fit([256, 1, 2], 500) == ([256, 1, 2], 0)


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": -1}, {"max_new_tokens": 0}, {"samples": 0}])
def test_settings_that_cannot_be_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Engine(small_model(), ByteTokenizer()).generate([256], **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [None, 0, 1, 5, 10_000])
def test_sampling_follows_the_distribution_of_the_top_tokens(top_k: int | None) -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5, -3.0])
    count, temperature = 4000, 0.7
    picked = sample_tokens(logits.expand(count, -1), [random.Random(i) for i in range(count)], temperature=temperature, top_k=top_k)
    kept = logits.clone()
    kept[logits.argsort(descending=True)[top_k or 6 :]] = float("-inf")
    expected = torch.softmax(kept / temperature, 0)
    found = torch.bincount(torch.tensor(picked), minlength=6) / count
    assert (found - expected).abs().max() < 0.03
    assert not found[expected == 0].any()


def test_temperature_zero_takes_the_largest_logit() -> None:
    assert sample_tokens(torch.tensor([[0.0, 3.0, 1.0]]), [random.Random(0)], temperature=0.0, top_k=2) == [1]


def test_a_stream_emits_whole_characters_only() -> None:
    stream = TextStream(ByteTokenizer())
    data = "aé€😀".encode()
    pieces = [stream.push(byte) for byte in data]
    assert "".join(pieces) == "aé€😀"
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "😀"]
    assert [stream.push(byte) for byte in "é".encode()[:1]] == [""]
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize(
    "variant", [{}, {"kv_heads": 2}, {"kv_heads": 1, "window_pattern": "SSL", "sequence_len": 600}, {"qk_norm": False, "depth": 2}, {"features": OFF}]
)
@pytest.mark.parametrize(("lengths", "made_for"), [([5], 1), ([4, 4, 4], 3), ([3, 140, 1, 9], 8), ([4, 7], 8), ([4, 4, 4, 4], 1)])
def test_decoding_equals_the_model_called_with_a_cache(variant: dict[str, Any], lengths: list[int], made_for: int) -> None:
    changes = {"sequence_len": 160, **variant}
    model = shaken(config(changes.pop("features", ON), **changes), torch.float64)
    ids, further = some_ids(len(lengths), max(lengths)), some_ids(len(lengths), 12, seed=1)
    caches = [KVCache(model.config, len(lengths), capacity=max(lengths) + 3, dtype=torch.float64) for _ in range(2)]
    with torch.inference_mode():
        assert Decoder.applies_to(model)
        decoder = Decoder(model, made_for)
        for cache in caches:
            model.hidden(ids, cache)
            cache.truncate(lengths)
        for place in range(12):
            expected = model(further[:, place : place + 1], caches[0])[:, 0]
            assert torch.allclose(decoder.logits(further[:, place], caches[1]), expected, atol=1e-10, rtol=1e-9)
        assert caches[0].lengths == caches[1].lengths
        longest = max(caches[0].lengths)
        for one, other in zip([*caches[0].keys, *caches[0].values], [*caches[1].keys, *caches[1].values], strict=True):
            for row, length in enumerate(caches[0].lengths):
                assert length <= longest
                assert torch.allclose(one[row, :, :length], other[row, :, :length], atol=1e-11)


def test_the_engine_decodes_with_the_weights_of_now() -> None:
    """Samples are drawn in the middle of training: what was prepared for an earlier prompt is out of date."""
    model = small_model()
    engine = Engine(model, ByteTokenizer())
    engine.generate_batch([[256, 5, 6]], max_new_tokens=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    assert engine.generate_batch([[256, 5, 6]], max_new_tokens=8) == [slow_greedy(model, [256, 5, 6], 8)]


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (50, 30), (7, 5), (4096, 16)])
@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_weight_multiplies_as_it_did_however_it_lies(shape: tuple[int, int], in_blocks: bool) -> None:
    weight, x, base = (torch.randn(size, dtype=torch.float64) for size in (shape, (5, shape[1]), (5, shape[0])))
    lying = arranged(weight, in_blocks=in_blocks)
    assert (lying.ndim == 3) == (in_blocks and shape[0] % 8 == 0)
    assert torch.allclose(product(x, lying), x @ weight.t(), atol=1e-12) and product(x, lying).is_contiguous()
    assert torch.allclose(added_product(base, x, lying), base + x @ weight.t(), atol=1e-12)


def test_a_decoder_is_made_again_for_other_numbers_of_rows_and_for_other_weights() -> None:
    model = small_model()
    engine = Engine(model, ByteTokenizer())
    prompt = [256, 5, 6]

    def decoder(prompts: int, samples: int) -> Decoder:
        engine.prefill([prompt] * prompts, room=4, samples=samples)
        assert engine._decoder is not None
        return engine._decoder

    alone = decoder(1, 1)
    assert decoder(2, 1) is alone and alone.suits(2) and not alone.suits(3)
    several = decoder(1, 3)
    assert several is not alone and decoder(8, 1) is several
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert not several.suits(8) and decoder(8, 1) is not several


def test_decoding_on_a_cpu_is_used_where_it_applies() -> None:
    model = small_model()
    assert Decoder.applies_to(model)
    model.dtype = torch.bfloat16
    assert not Decoder.applies_to(model)
