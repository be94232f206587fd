"""Beams against transformers called plainly, samples against the distribution, scores against a second pass."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import TITLES, make_prompts, prompt_of, tiny_model, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gloss_utils import generation, language_models
from gloss_utils.generation import (
    STRATEGIES,
    CatalogTrie,
    Strategy,
    UserSampler,
    clean_text,
    encode_prompts,
    generate,
    get_strategy,
    plan_batches,
)


def write(prompts=None, strategy="beam5", **options):
    return generate(tiny_model(), tiny_tokenizer(), prompts or make_prompts(), strategy, **options)


def texts_of(results):
    return [result.texts for result in results]


def plain_generate(prompt, **settings):
    """Call transformers as its documentation does, for one prompt: no padding, no cache of ours."""
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(prompt, return_tensors="pt")
    settings = GenerationConfig(max_new_tokens=50, eos_token_id=1, pad_token_id=0, **settings)
    inputs.pop("token_type_ids", None)
    tiny_model().set_attn_implementation("sdpa")
    found = tiny_model().generate(**inputs, generation_config=settings)
    return found, inputs["input_ids"].shape[1]


def second_pass(prompt, text, ended=True):
    """Score an answer with one teacher-forced pass: the sum of its tokens' log-probabilities."""
    tokenizer = tiny_tokenizer()
    start = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + text)["input_ids"] + ([tokenizer.eos_token_id] if ended else [])
    with torch.inference_mode():
        log_probs = tiny_model()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(len(start), len(ids)))


@pytest.mark.parametrize("strategy", ["beam5", "beam5mean", "temp0.5", "calrec32", "constrained5"])
def test_texts_do_not_depend_on_the_batch(strategy):
    trie = CatalogTrie(TITLES, tiny_tokenizer())
    alone = write(strategy=strategy, batch_size=1, trie=trie)
    for batch_size in (8, 3):
        together = write(strategy=strategy, trie=trie, batch_size=batch_size)
        assert texts_of(together) == texts_of(alone)
        for one, other in zip(alone, together):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


def test_many_texts_make_smaller_batches():
    """32 samples of 32 users with long prompts do not fit on a card that five beams of 32 users fill."""
    sizes = [
        len(rows)
        for rows, _ in generation.generate_batches(
            tiny_model(), tiny_tokenizer(), [make_prompts()[3]] * 8, "calrec32", batch_size=16
        )
    ]
    assert sizes == [2, 2, 2, 2]


def test_samples_do_not_depend_on_the_other_users():
    prompts = make_prompts()
    everyone = write(prompts, "temp0.5")
    backwards = write(prompts[:4][::-1], "temp0.5")
    assert texts_of(backwards) == texts_of(everyone[:4][::-1])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_are_those_of_plain_transformers(length_penalty):
    strategy = Strategy("beams", length_penalty=length_penalty)
    for prompt, result in zip(make_prompts(), write(strategy=strategy)):
        settings = {"num_beams": 5, "num_return_sequences": 5, "length_penalty": length_penalty, "do_sample": False}
        plain, length = plain_generate(prompt, return_dict_in_generate=True, output_scores=True, **settings)
        tokens = plain.sequences[:, length:]
        assert result.texts == [clean_text(text) for text in tiny_tokenizer().batch_decode(tokens, True)]
        counts = (plain.beam_indices >= 0).sum(-1) ** length_penalty
        assert result.scores == pytest.approx((plain.sequences_scores * counts).tolist(), abs=1e-4)


def adapted_model():
    """The tiny model with an adapter that has learned something."""
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(tiny_model()), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model.eval()


def quantized_model(tmp_path):
    """An untaught model: the tiny one is no multiple of a block of 64 wide."""
    torch.manual_seed(2)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer()), num_key_value_heads=2, initializer_range=0.2, **size)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = language_models.load(str(tmp_path), quantize=True)[0]
    language_models.keep_trainable(model)  # else arithmetic in bf16, whose rounding depends on the batch
    return model


MODELS = {
    "as it is": lambda tmp_path: tiny_model(),
    "with an adapter": lambda tmp_path: adapted_model(),
    "in 4 bits": quantized_model,
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("strategy", ["beam5", "temp0.5", "calrec32", "constrained5"])
def test_a_shared_prompt_gives_what_transformers_gives(monkeypatch, tmp_path, kind, strategy):
    """transformers repeats the prompt for each text and caches each; prompts of unequal length are padded."""
    model, options = MODELS[kind](tmp_path), {"trie": CatalogTrie(TITLES, tiny_tokenizer()), "batch_size": 8}
    shared = generate(model, tiny_tokenizer(), make_prompts()[2:], strategy, **options)
    assert model.config._attn_implementation == generation.SHARED
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(generation, "read_prompts_once", lambda model, inputs: {})
    usual = generate(model, tiny_tokenizer(), make_prompts()[2:], strategy, **options)
    assert texts_of(shared) == texts_of(usual)
    for one, other in zip(shared, usual):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_model_goes_to_bf16_where_the_cpu_has_it_but_its_positions_do_not(monkeypatch, fast, dtype):
    """`model.bfloat16()` rounds the rotary frequencies too: 400 tokens on, an angle is wrong by up to one radian."""
    monkeypatch.setattr(language_models, "has_fast_bf16", lambda: fast)
    model, _ = language_models.for_generation(adapted_model(), tiny_tokenizer())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    frequencies = [buffer for name, buffer in model.named_buffers() if "inv_freq" in name]
    exact = tiny_model().model.rotary_emb.inv_freq
    assert frequencies and all(torch.equal(frequency, exact) for frequency in frequencies)


def test_a_merged_adapter_writes_as_it_did(monkeypatch):
    """In 16 bits the first beam may change where two are close; its probability stays."""
    monkeypatch.setattr(language_models, "has_fast_bf16", lambda: True)
    apart = generate(adapted_model(), tiny_tokenizer(), make_prompts())
    merged, _ = language_models.for_generation(adapted_model(), tiny_tokenizer())
    assert not hasattr(merged, "peft_config")
    for one, other in zip(apart, generate(merged, tiny_tokenizer(), make_prompts())):
        assert other.scores[0] == pytest.approx(one.scores[0], abs=0.1)


def test_a_model_in_4_bits_keeps_its_parameters(monkeypatch, tmp_path):
    monkeypatch.setattr(language_models, "has_fast_bf16", lambda: True)
    model = quantized_model(tmp_path)
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    after, _ = language_models.for_generation(model, tiny_tokenizer())
    assert after is model and {name: parameter.dtype for name, parameter in after.named_parameters()} == before


def padded_inputs(prompts):
    encoded = encode_prompts(tiny_tokenizer(), prompts, 1024, 50)
    return tiny_tokenizer().pad({"input_ids": encoded}, return_tensors="pt")


def test_a_prompt_stands_in_the_cache_once_however_many_texts_are_written():
    inputs = padded_inputs(make_prompts()[:3])
    cache = generation.read_prompts_once(tiny_model(), inputs)["past_key_values"]
    layer, new = cache.layers[0], torch.zeros(3 * 5, 2, 1, 12)
    layer.update(new, new)
    layer.reorder_cache(torch.arange(15).flip(0))
    assert layer.prompt[0].shape == (3, 2, inputs["input_ids"].shape[1] - 1, 12)
    assert layer.keys.shape == (15, 2, 1, 12)
    assert layer.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("padded", [True, False])
def test_attention_to_a_shared_prompt_is_that_of_sdpa(padded):
    """Two users, three texts each, two key heads for four query heads; one prompt begins with padding."""
    torch.manual_seed(5)
    users, texts, length, own = 2, 3, 7, 4
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    prompt = [torch.randn(users, 2, length, 8) for _ in range(2)]
    mine = [torch.randn(users * texts, 2, own, 8) for _ in range(2)]
    query = torch.randn(users * texts, 4, 1, 8)
    mask = torch.ones(users * texts, 1, 1, length + own, dtype=torch.bool)
    mask[texts:, ..., :3] = False
    options = {"attention_mask": mask if padded else None, "scaling": 0.3}
    whole = [torch.cat([far.repeat_interleave(texts, 0), near], 2) for far, near in zip(prompt, mine)]
    expected, _ = sdpa_attention_forward(module, query, *whole, **options)
    mine[0].prompt = prompt
    torch.testing.assert_close(generation.attend(module, query, *mine, **options)[0], expected)


def test_a_model_that_shared_prompts_reads_and_trains_as_before():
    inputs = padded_inputs(make_prompts()[2:5])
    logits = []
    for attention in ("sdpa", generation.SHARED):
        tiny_model().set_attn_implementation(attention)
        with torch.inference_mode():
            logits.append(tiny_model()(**inputs).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize(("window", "attention"), [(16, "sdpa"), (None, "eager")])
def test_another_attention_is_left_to_transformers(window, attention):
    """A cache that forgets, or an attention of a model's own, is not what the shared prompt computes."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=400, num_key_value_heads=1, sliding_window=window, **size)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    assert generation.read_prompts_once(model, padded_inputs(make_prompts()[:2])) == {}
    assert model.config._attn_implementation == attention
    assert all(len(result.texts) == 5 for result in generate(model, tiny_tokenizer(), make_prompts()[:2]))


def test_a_model_that_cannot_switch_its_attention_is_left_to_transformers(monkeypatch):
    monkeypatch.setattr(type(tiny_model()), "_can_set_attn_implementation", classmethod(lambda cls: False))
    tiny_model().config._attn_implementation = "sdpa"
    assert generation.read_prompts_once(tiny_model(), padded_inputs(make_prompts()[:2])) == {}


@pytest.mark.parametrize("strategy", ["beam5", "beam5mean", "temp0.5", "constrained5"])
def test_scores_equal_a_second_pass(strategy):
    """The total log-probability comes with the texts, whatever the strategy did to choose them."""
    trie = CatalogTrie(TITLES, tiny_tokenizer())
    compared = 0
    for prompt, result in zip(make_prompts(), write(strategy=strategy, trie=trie)):
        for text, score in zip(result.texts, result.scores):
            if text in TITLES:  # a text that another segmentation could spell is not comparable
                assert score == pytest.approx(second_pass(prompt, text), abs=1e-3)
                compared += 1
    assert compared >= 20


def test_a_text_cut_by_the_limit_has_the_score_of_its_tokens():
    short = dataclasses.replace(STRATEGIES["beam5"], max_new_tokens=3)
    prompt = make_prompts()[0]
    best = write([prompt], short)[0]
    assert best.scores[0] == pytest.approx(second_pass(prompt, best.texts[0], ended=False), abs=1e-3)


def test_beams_come_likeliest_first():
    for result in write():
        assert result.scores == sorted(result.scores, reverse=True)
        assert len(set(result.texts)) == 5


def test_sampler_draws_from_the_distribution_of_transformers():
    """Temperature, top-k and top-p together: 20,000 draws against the probabilities of transformers' warpers."""
    torch.manual_seed(3)
    logits = torch.randn(1, 40) * 2
    strategy = Strategy("t", num_texts=20_000, temperature=0.7, top_k=12, top_p=0.8)
    warped = logits
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(12), TopPLogitsWarper(0.8)):
        warped = warper(None, warped)
    expected = warped.softmax(-1)[0]
    sampler = UserSampler(strategy, [7], eos_token_id=1, device="cpu")
    drawn = sampler(None, logits.repeat(20_000, 1)).argmax(-1)
    seen = torch.bincount(drawn, minlength=40) / 20_000
    assert set(drawn.tolist()) == set(torch.nonzero(expected > 0).flatten().tolist())
    assert (seen - expected).abs().max() < 0.012  # more than three standard errors
    assert torch.allclose(sampler.scores, logits.log_softmax(-1)[0, drawn], atol=1e-5)


def test_sampler_stops_counting_after_the_end():
    sampler = UserSampler(Strategy("t", num_texts=1, temperature=0.1), [0], eos_token_id=1, device="cpu")
    logits = torch.tensor([[0.0, 50.0, 0.0]])
    sampler(None, logits)
    ended = sampler.scores.clone()
    sampler(None, torch.tensor([[0.0, 0.0, 0.0]]))
    assert torch.equal(sampler.scores, ended)


def test_a_seed_repeats_and_another_seed_differs():
    assert texts_of(write(strategy="temp0.5", seed=1)) == texts_of(write(strategy="temp0.5", seed=1))
    assert texts_of(write(strategy="temp0.5", seed=1)) != texts_of(write(strategy="temp0.5", seed=2))


def test_a_low_temperature_is_close_to_greedy():
    cold = Strategy("cold", num_texts=2, temperature=1e-3)
    for prompt, result in zip(make_prompts(), write(strategy=cold)):
        greedy, length = plain_generate(prompt, do_sample=False)
        assert result.texts == [clean_text(tiny_tokenizer().decode(greedy[0, length:]).split("<eos>")[0])] * 2


def test_calrec_texts_are_distinct_and_likeliest_first():
    for result in write(strategy="calrec32"):
        assert 1 <= len(result.texts) == len(set(result.texts)) <= 32
        assert result.scores == sorted(result.scores, reverse=True)


def test_truncation_keeps_the_end_and_leaves_room_for_the_answer():
    prompt = make_prompts()[7]
    whole = encode_prompts(tiny_tokenizer(), [prompt], 1024, 50)[0]
    cut = encode_prompts(tiny_tokenizer(), [prompt], 90, 50)[0]
    assert len(cut) == 40 < len(whole)
    assert cut == whole[-40:]


def test_a_prompt_is_padded_on_the_left():
    """Right padding puts pads between `### Next item:` and the answer: the model then writes from nowhere."""
    tokenizer = tiny_tokenizer()
    encode_prompts(tokenizer, ["a"], 100, 50)
    padded = tokenizer.pad({"input_ids": [[5], [6, 7, 8]]})["input_ids"]
    assert padded == [[0, 0, 5], [6, 7, 8]]


def test_results_keep_the_order_of_the_prompts():
    prompts = make_prompts()
    mixed = [prompts[row] for row in (3, 7, 0, 5)]
    assert texts_of(write(mixed, batch_size=2)) == [texts_of(write([prompt]))[0] for prompt in mixed]


def test_batches_hold_similar_lengths_and_everyone_once():
    lengths = np.random.default_rng(0).integers(1, 900, 101).tolist()
    batches = plan_batches(lengths, 8)
    assert sorted(row for batch in batches for row in batch) == list(range(101))
    assert all(len(batch) <= 8 for batch in batches)
    assert sum(max(lengths[row] for row in batch) * len(batch) for batch in batches) < 1.1 * sum(lengths)


def test_an_empty_answer_is_an_empty_text():
    """A model that ends at once gives '', not the prompt and not an error."""
    model = tiny_model()
    tokenizer = tiny_tokenizer()
    handle = model.lm_head.register_forward_hook(
        lambda module, args, output: output.index_fill(-1, torch.tensor([tokenizer.eos_token_id]), 100.0)
    )
    try:
        result = generate(model, tokenizer, [make_prompts()[0]], "temp0.1")[0]
        best = generate(model, tokenizer, [make_prompts()[0]], "beam5")[0].texts[0]
    finally:
        handle.remove()
    assert result.texts == [""] * 5
    assert result.scores == pytest.approx([0.0] * 5, abs=1e-4)
    assert best == ""


@pytest.mark.parametrize(
    ("decoded", "text"),
    [("Title: A\nTitle: B", "Title: A"), ("\n Title: A ", "Title: A"), ("", ""), (" \n\n", "")],
)
def test_the_answer_is_the_first_line(decoded, text):
    assert clean_text(decoded) == text


def test_every_setting_is_one_that_this_transformers_knows(monkeypatch):
    """GenerationConfig takes any keyword without a word, so a renamed one would be lost in silence."""
    used, known = set(), set(GenerationConfig().to_dict())
    monkeypatch.setattr(generation, "GenerationConfig", lambda **call: used.update(call) or GenerationConfig(**call))
    for strategy in ("beam5", "temp0.5"):
        write(make_prompts()[:1], strategy)
    assert {"num_beams", "length_penalty", "max_new_tokens", "output_scores"} <= used <= known


def test_no_prompts_give_no_results():
    assert generate(tiny_model(), tiny_tokenizer(), [], "beam5") == []


def constrained(titles, prompts=None, strategy="constrained5"):
    return write(prompts, strategy, trie=CatalogTrie(titles, tiny_tokenizer()))


def test_every_constrained_beam_is_an_item():
    for result in constrained(TITLES):
        assert set(result.texts) <= set(TITLES)
        assert len(set(result.texts)) == 5


def test_constrained_beams_are_the_likeliest_items_when_all_are_scored_one_by_one():
    """Brute force: with five texts in the catalog, the beams are all of them in the order of a second pass."""
    titles = TITLES[:5]
    for prompt, result in zip(make_prompts(), constrained(titles)):
        assert result.texts == sorted(titles, key=lambda text: -second_pass(prompt, text))


def test_the_mask_leaves_the_models_own_log_probabilities():
    """transformers masks after the softmax: masked before it, the only token allowed would have probability 1."""
    for prompt, result in zip(make_prompts(), constrained([TITLES[5]])):
        assert result.texts == [TITLES[5]]
        assert result.scores[0] == pytest.approx(second_pass(prompt, TITLES[5]), abs=1e-3)
        assert result.scores[0] < -0.01


def test_the_trie_is_nested_dicts():
    """'Rose Hand Soap' is also the beginning of 'Rose Hand Soap Large': it may end or go on."""
    tokenizer = tiny_tokenizer()
    trie = CatalogTrie([TITLES[1], TITLES[0], TITLES[0]], tokenizer)
    whole = tokenizer(TITLES[0], add_special_tokens=False)["input_ids"]
    assert trie.allowed([]) == whole[:1]
    assert tokenizer.eos_token_id in trie.allowed(whole) and len(trie.allowed(whole)) == 2
    assert trie.allowed([*whole, tokenizer.eos_token_id]) == [tokenizer.eos_token_id]
    assert trie.after(2)(0, torch.tensor([9, 9, *whole])) == trie.allowed(whole)
    assert {text for result in constrained(TITLES[:2]) for text in result.texts} == set(TITLES[:2])


def test_a_long_item_is_not_cut_off_by_the_answers_limit():
    """A title with more tokens than the answer may have came back cut in half, and was no item."""
    short = dataclasses.replace(STRATEGIES["constrained5"], max_new_tokens=3)
    for result in constrained(TITLES, strategy=short):
        assert set(result.texts) <= set(TITLES)


def test_a_beam_wider_than_what_can_be_said_gives_fewer_texts():
    for result in constrained(TITLES[:3]):
        assert sorted(result.texts) == sorted(TITLES[:3])
        assert min(result.scores) > -1000


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: get_strategy("beam4"), "unknown strategy 'beam4': did you mean 'beam5'"),
        (lambda: get_strategy("beem5"), "did you mean 'beam5'"),
        (lambda: Strategy("none", num_texts=0), "num_texts"),
        (lambda: Strategy("odd", temperature=float("nan")), "must be a "),
        (lambda: Strategy("both", temperature=0.5, constrained=True), "set temperature to 0"),
        (lambda: write(batch_size=0), "batch_size is 0"),
        (lambda: write(strategy="constrained5"), "needs trie=CatalogTrie"),
        (lambda: write(max_seq_length=50), "leaves no room"),
        (lambda: write([prompt_of("Title: A"), ""]), "prompt 1 is empty"),
        (lambda: CatalogTrie([], tiny_tokenizer()), "the catalog is empty"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=r"^[^\n]+\Z") as error:
        call()
    assert words in str(error.value)
