"""Catalog-constrained beams: every beam is an item, and the best items are found."""

import dataclasses

import pytest
import torch
from test_generation import second_pass
from tiny_model import TITLES, make_prompts, tiny_model, tiny_tokenizer

from gloss_utils.generation import STRATEGIES, CatalogTrie, generate


def write(prompts, titles):
    return generate(
        tiny_model(), tiny_tokenizer(), prompts, "constrained5", trie=CatalogTrie(titles, tiny_tokenizer())
    )


def test_every_beam_is_an_item():
    for result in write(make_prompts(), TITLES):
        assert set(result.texts) <= set(TITLES)
        assert len(set(result.texts)) == 5


def test_beams_are_the_likeliest_items_when_all_are_scored_one_by_one():
    """Brute force: with five texts in the catalog, the beams are all of them in the order of a second pass."""
    titles = TITLES[:5]
    for prompt, result in zip(make_prompts(), write(make_prompts(), titles)):
        assert result.texts == sorted(titles, key=lambda text: -second_pass(prompt, text))


def test_a_text_may_end_where_another_goes_on():
    """'Rose Hand Soap' is also the beginning of 'Rose Hand Soap Large': both must be reachable."""
    texts = {text for result in write(make_prompts(), TITLES[:2]) for text in result.texts}
    assert texts == set(TITLES[:2])


def test_shared_titles_are_one_text():
    trie = CatalogTrie([TITLES[0], TITLES[0], TITLES[2]], tiny_tokenizer())
    assert trie.allowed == CatalogTrie([TITLES[2], TITLES[0]], tiny_tokenizer()).allowed


def test_allowed_scores_stay_and_others_go():
    tokenizer = tiny_tokenizer()
    trie = CatalogTrie(TITLES, tokenizer)
    prompt = torch.tensor([[9, 9, 9]])
    scores = torch.randn(1, len(tokenizer))
    masked = trie.processor(prompt_length=3)(prompt, scores)
    first = trie.allowed[()]
    assert torch.equal(masked[0, first], scores[0, first])
    assert torch.isinf(masked).sum() == len(tokenizer) - len(first)


def test_an_empty_catalog_is_one_sentence():
    with pytest.raises(ValueError, match="the catalog is empty"):
        CatalogTrie([], tiny_tokenizer())


def test_a_long_item_is_not_cut_off_by_the_answers_limit():
    """A title with more tokens than the answer may have came back cut in half, and was no item."""
    short = dataclasses.replace(STRATEGIES["constrained5"], max_new_tokens=3)
    trie = CatalogTrie(TITLES, tiny_tokenizer())
    for result in generate(tiny_model(), tiny_tokenizer(), make_prompts(), short, trie=trie):
        assert set(result.texts) <= set(TITLES)
