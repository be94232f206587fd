"""The base model: a tokenizer that gives every text back, and a model that learns the catalog."""

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gloss_utils import prompts, tiny_llama

TEXTS = [
    "Title: Rose Toner, 150 ml",
    'Title: Café Crème 50 % "Soir"',
    "Title: Mint Soap",
    "Title: 日本 Title: within a title",
]
SMALL = tiny_llama.Recipe(vocab_size=400, hidden_size=64, num_layers=2, mlp_size=128, epochs=2, block_length=16)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_llama.train_tokenizer(TEXTS, vocab_size=400)


def test_tokenizer_gives_texts_back(tokenizer):
    for text in [*TEXTS, prompts.build_training_text(TEXTS)]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_tokenizer_special_tokens(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = tokenizer("Title: Mint Soap")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids


def test_template_is_few_tokens_and_the_answer_starts_on_a_token_border(tokenizer):
    """Prompt and answer tokenized apart must equal the whole, or training and generation see different numbers."""
    prompt, answer = prompts.build_prompt(TEXTS[:2]), TEXTS[2]
    apart = tokenizer(prompt)["input_ids"] + tokenizer(answer, add_special_tokens=False)["input_ids"]
    assert apart == tokenizer(prompt + answer)["input_ids"]
    header = tokenizer(prompts.PROMPT_HEADER, add_special_tokens=False)["input_ids"]
    assert len(header) == 1


def test_pages_are_the_shuffled_catalog():
    texts = [f"Title: {number}" for number in range(100)]
    pages = tiny_llama.catalog_pages(texts, np.random.default_rng(0), longest=12)
    lines = [line for page in pages for line in page.split("\n")]
    assert sorted(lines) == sorted(texts)
    assert lines != texts
    assert max(page.count("\n") + 1 for page in pages) <= 12


def test_blocks_are_full_and_pages_end(tokenizer):
    blocks = tiny_llama.token_blocks(TEXTS * 5, tokenizer, np.random.default_rng(0), block_length=16)
    assert blocks.shape[1] == 16
    assert tokenizer.eos_token_id in blocks
    assert tokenizer.pad_token_id not in blocks


def test_one_item_catalog_still_makes_a_row(tokenizer):
    assert tiny_llama.token_blocks(TEXTS[:1], tokenizer, np.random.default_rng(0), 128).shape[0] == 1


def test_pretraining_learns_and_the_base_can_be_loaded_again(tmp_path):
    recipe = tiny_llama.Recipe(vocab_size=400, hidden_size=64, num_layers=2, mlp_size=128, epochs=30, block_length=16)
    log = tiny_llama.pretrain_base(TEXTS, tmp_path / "base", recipe)
    assert log["loss"].tail(5).mean() < log["loss"].iloc[0] - 1.0  # nats
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_same_seed_same_loss(tmp_path):
    first = tiny_llama.pretrain_base(TEXTS, tmp_path / "a", SMALL)
    second = tiny_llama.pretrain_base(TEXTS, tmp_path / "b", SMALL)
    assert first["loss"].tolist() == second["loss"].tolist()


def test_empty_catalog_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="the catalog is empty"):
        tiny_llama.pretrain_base([], tmp_path / "base", SMALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 32}, "multiples of 64"),  # failed deep inside a matrix product of bitsandbytes
        ({"epochs": 0}, "epochs is 0: it must be a whole number from 1 up"),
        ({"vocab_size": 100}, "from 300 up"),
    ],
)
def test_a_recipe_that_cannot_work_is_one_sentence(wrong, message):
    with pytest.raises(ValueError, match=message):
        tiny_llama.Recipe(**wrong)
