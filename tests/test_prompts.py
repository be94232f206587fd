"""The prompt, to the letter, against the example that the authors print."""

import pytest

from gloss_utils import prompts

# The user of the authors' primer: five training items, then the test item. Titles as on the page.
PRIMER_TITLES = [
    "63cm Long Zipper Beige+pink Wavy Cosplay Hair Wig Rw157",
    "MapofBeauty Long Wave Curly Hair Wig Full Wig for Women Long (Black)",
    "MapofBeauty Cosplay Costume Long Curly Hair Wig Ladies Synthetic Wigs (White)",
    '32" 80cm Long Hair Heat Resistant Spiral Curly Cosplay Wig (Red Dark)',
    'MapofBeauty 28" 70cm Long Curly Hair Ends Costume Cosplay Wig (Brown)',
    "MapofBeauty Beautiful Women's Flat Bang Long Wave Curly Wig (Black)",
]
PRIMER_TRAINING_TEXT = (
    "Below is a customer's purchase history on Amazon, listed in chronological order (earliest to latest). \n"
    "Each item is represented by the following format: Title: <item title> \n"
    "Based on this history, predict **only one** item the customer is most likely to purchase next in the same"
    " format.\n"
    "\n"
    "### Purchase history:\n"
    "Title: 63cm Long Zipper Beige+pink Wavy Cosplay Hair Wig Rw157\n"
    "Title: MapofBeauty Long Wave Curly Hair Wig Full Wig for Women Long (Black)\n"
    "Title: MapofBeauty Cosplay Costume Long Curly Hair Wig Ladies Synthetic Wigs (White)\n"
    'Title: 32" 80cm Long Hair Heat Resistant Spiral Curly Cosplay Wig (Red Dark)\n'
    "\n"
    "### Next item:\n"
    'Title: MapofBeauty 28" 70cm Long Curly Hair Ends Costume Cosplay Wig (Brown)'
)


def primer_texts() -> list[str]:
    return [prompts.item_text(title) for title in PRIMER_TITLES]


def test_training_text_is_the_printed_one():
    assert prompts.build_training_text(primer_texts()[:5]) == PRIMER_TRAINING_TEXT


def test_prompt_ends_where_the_model_goes_on():
    prompt = prompts.build_prompt(primer_texts()[:4])
    assert prompt.endswith("### Next item:\n")
    assert prompt + primer_texts()[4] == PRIMER_TRAINING_TEXT


def test_titles_are_cut_to_25_words():
    title = " ".join(f"w{number}" for number in range(30))
    assert prompts.item_text(title).split() == ["Title:"] + [f"w{number}" for number in range(25)]


def test_split_prompt_undoes_build():
    answer, items = prompts.split_prompt(PRIMER_TRAINING_TEXT)
    assert answer == primer_texts()[4]
    assert items == primer_texts()[:4]


def test_empty_history_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        prompts.build_prompt([])
    with pytest.raises(ValueError, match="at least one item"):
        prompts.build_training_text([])


def test_a_single_training_item_has_an_empty_history():
    assert prompts.build_training_text(["Title: a"]).endswith("### Purchase history:\n\n\n### Next item:\nTitle: a")


def characters(text: str) -> dict[str, list[int]]:
    """A tokenizer with one token per character, and a BOS."""
    return {"input_ids": [0, *map(ord, text)]}


characters.bos_token_id = 0
FRAME = len(characters(prompts.build_prompt([""]))["input_ids"])


@pytest.mark.parametrize(
    ("room", "kept"), [(100, "abcd"), (7, "abcd"), (6, "bcd"), (4, "cd"), (2, "d"), (1, "d"), (0, "d"), (-9, "d")]
)
def test_the_most_recent_items_that_fit_are_kept(room, kept):
    assert "".join(prompts.fit_history("abcd", characters, FRAME + room)) == kept


def test_nothing_fits_of_an_empty_history():
    assert prompts.fit_history([], characters, 10) == []


def test_left_cuts_the_instruction_and_oldest_cuts_items():
    prompt = prompts.build_prompt("abcd")
    left = prompts.truncate_prompt(prompt, characters, FRAME + 3)
    assert left == [0, *map(ord, prompt[-(FRAME + 2) :])]
    oldest = prompts.truncate_prompt(prompt, characters, FRAME + 3, "oldest")
    assert oldest == characters(prompts.build_prompt("cd"))["input_ids"]
    for truncation in ("left", "oldest"):
        assert prompts.truncate_prompt(prompt, characters, 1000, truncation) == characters(prompt)["input_ids"]
        assert len(prompts.truncate_prompt(prompt, characters, 9, truncation)) == 9
