"""A Llama of a few thousand weights and a tokenizer of a few hundred tokens, made in a second.

It is overfitted on eight users, so that its beams are real titles and its scores differ, which random weights
would not give. Used by the tests of generation.
"""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TITLES = [
    "Title: Rose Hand Soap",
    "Title: Rose Hand Soap Large",
    "Title: Rose Body Lotion",
    "Title: Lemon Hand Soap",
    "Title: Lemon Body Lotion",
    "Title: Cedar Beard Oil",
    "Title: Cedar Beard Comb",
    "Title: Steel Comb",
]
HEADER = "Purchases so far.\n### Purchase history:\n"


def prompt_of(*titles: str) -> str:
    return HEADER + "\n".join(titles) + "\n### Next item:\n"


def make_prompts() -> list[str]:
    """Eight users with histories of one to eight titles, so that the prompts' lengths differ."""
    return [prompt_of(*(TITLES[(user + step) % 8] for step in range(user + 1))) for user in range(8)]


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([HEADER, "### Next item:\n", *TITLES], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@cache
def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    overfit(model, tokenizer)
    return model.eval()


def overfit(model, tokenizer, steps: int = 60) -> None:
    """Teach the eight users' next titles, far enough that beams are titles, not so far that all is certain."""
    prompts = make_prompts()
    answers = [prompt + TITLES[(user * 3 + 1) % 8] for user, prompt in enumerate(prompts)]
    tokenizer.padding_side = "right"
    batch = tokenizer([text + tokenizer.eos_token for text in answers], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in enumerate(prompts):
        labels[row, : len(tokenizer(prompt)["input_ids"])] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
