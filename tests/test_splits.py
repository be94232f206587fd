"""The leave-last-out split against hand-worked users, the primer's example, and a row-by-row build."""

import random

import numpy as np
import pandas as pd
import pytest
from test_prompts import PRIMER_TITLES, PRIMER_TRAINING_TEXT

from gloss_utils import prompts, splits

# The asins that the primer lists for its example user, in time order.
PRIMER_ASINS = ["B007IY97U0", "B00870XLDS", "B008MIRO88", "B00BQYYMN0", "B00GRTQBTM", "B000052YU"]


def primer_tables(num_users: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The primer's user, once or many times over under different names."""
    interactions = pd.DataFrame(
        [(f"A{user:02d}", asin, day) for user in range(num_users) for day, asin in enumerate(PRIMER_ASINS)],
        columns=["reviewer_id", "asin", "timestamp"],
    )
    catalog = pd.DataFrame({"asin": PRIMER_ASINS, "title": PRIMER_TITLES})
    catalog["text"] = [prompts.item_text(title) for title in PRIMER_TITLES]
    return interactions, catalog


def test_the_primers_user_comes_out_as_printed():
    built = splits.build_splits(*primer_tables(num_users=2))
    assert built["validation"]["reviewer_id"][:] == ["A00"]
    built = {name: rows.filter(lambda row: row["reviewer_id"] == "A01") for name, rows in built.items()}
    assert built["train"][0] == {"reviewer_id": "A01", "text": PRIMER_TRAINING_TEXT}
    test = built["test"][0]
    assert test["seen_asins"] == PRIMER_ASINS[:5]
    assert test["asin"] == "B000052YU"
    assert test["asin_text"] == "Title: MapofBeauty Beautiful Women's Flat Bang Long Wave Curly Wig (Black)"
    assert test["ptext"].endswith(f"Title: {PRIMER_TITLES[4]}\n\n### Next item:\n")
    assert test["text"] == test["ptext"] + test["asin_text"]


def test_a_validation_users_training_text_is_one_item_shorter():
    built = splits.build_splits(*primer_tables(num_users=20))  # 5 % of 20 is one user
    (row,) = built["validation"]
    assert row["seen_asins"] == PRIMER_ASINS[:4]
    assert row["asin"] == PRIMER_ASINS[4]
    assert row["text"] == PRIMER_TRAINING_TEXT
    training = {text["reviewer_id"]: prompts.split_prompt(text["text"]) for text in built["train"]}
    answer, history = training.pop(row["reviewer_id"])
    assert (answer, len(history)) == (f"Title: {PRIMER_TITLES[3]}", 3)
    assert {(answer, len(history)) for answer, history in training.values()} == {(f"Title: {PRIMER_TITLES[4]}", 4)}


def test_validation_users_are_drawn_as_the_authors_drew_them():
    users = [f"U{number:03d}" for number in range(200)]
    shuffled = users[::-1]
    assert splits.draw_validation_users(shuffled) == random.Random(42).sample(users, 10)
    random.seed(42)  # the authors seed the module; the draw is the same
    assert splits.draw_validation_users(users) == random.sample(users, 10)


def test_fields_are_those_of_the_published_files(prepared):
    held_out = ["reviewer_id", "ptext", "text", "seen_asins", "asin", "asin_text"]
    assert prepared.splits["train"].column_names == ["reviewer_id", "text"]
    assert prepared.splits["validation"].column_names == held_out
    assert prepared.splits["test"].column_names == held_out


def build_row_by_row(interactions, catalog, validation_users):
    """The same split in the plainest way: a dictionary of histories, one user at a time."""
    texts = dict(zip(catalog["asin"], catalog["text"]))
    histories = {}
    for row in interactions.itertuples():
        histories.setdefault(row.reviewer_id, []).append(row.asin)
    train, validation, test = [], [], []
    for user, asins in histories.items():
        words = [texts[asin] for asin in asins]
        test.append((user, asins[:-1], asins[-1]))
        cut = -2 if user in validation_users else -1
        if cut == -2:
            validation.append((user, asins[:-2], asins[-2]))
        train.append((user, prompts.build_training_text(words[:cut])))
    return train, validation, test


def test_splits_equal_a_row_by_row_build(prepared):
    users = set(splits.draw_validation_users(prepared.interactions["reviewer_id"]))
    train, validation, test = build_row_by_row(prepared.interactions, prepared.catalog, users)
    built = prepared.splits
    assert list(zip(built["train"]["reviewer_id"], built["train"]["text"])) == train
    for name, expected in (("validation", validation), ("test", test)):
        rows = [(row["reviewer_id"], row["seen_asins"], row["asin"]) for row in built[name]]
        assert rows == expected


def test_a_user_with_two_items_is_refused(toy):
    with pytest.raises(ValueError, match="user 'u9' has 2 interactions"):
        two = pd.DataFrame({"reviewer_id": ["u9", "u9"], "asin": ["a1", "a2"], "timestamp": [0, 1]})
        splits.build_splits(pd.concat([toy.interactions, two]), toy.catalog)


@pytest.mark.parametrize(
    ("tie_order", "expected"), [("asin", ["a3", "a1", "a2", "a9"]), ("reverse", ["a3", "a9", "a2", "a1"])]
)
def test_ties_are_ordered_within_a_day_only(tie_order, expected):
    frame = pd.DataFrame({"reviewer_id": "u", "asin": ["a9", "a3", "a1", "a2"], "timestamp": [5, 1, 5, 5]})
    assert splits.order_ties(frame, tie_order)["asin"].tolist() == expected


def test_shuffled_ties_depend_on_the_seed_and_not_on_the_line_order(prepared):
    first = splits.order_ties(prepared.interactions, "shuffled", seed=1)
    again = splits.order_ties(prepared.interactions.sample(frac=1, random_state=3), "shuffled", seed=1)
    other = splits.order_ties(prepared.interactions, "shuffled", seed=2)
    pd.testing.assert_frame_equal(first, again)
    assert (first["asin"] != other["asin"]).any()
    pd.testing.assert_frame_equal(
        first[["reviewer_id", "timestamp"]], prepared.interactions[["reviewer_id", "timestamp"]]
    )
    assert (first["asin"] != prepared.interactions["asin"]).mean() > 0.1


def test_unknown_tie_order_names_the_near_match(toy):
    with pytest.raises(ValueError, match="did you mean 'shuffled'"):
        splits.order_ties(toy.interactions, "shufled")


def test_load_task_of_the_toy(toy):
    task = splits.load_task(toy)
    assert task.reviewer_ids.tolist() == ["u1", "u2", "u3", "u4"]
    assert [seen.tolist() for seen in task.seen_items] == [[0, 1], [3, 4, 5], [0, 1, 6], [1, 2, 3, 4]]
    assert task.targets.tolist() == [2, 6, 2, 5]
    assert task.targets.dtype == np.int64 and task.seen_items[0].dtype == np.int64
    assert task.prompts[0] == prompts.build_prompt(["Title: Rose Soap", "Title: Rose Toner"])


def test_a_tiny_shop_has_one_validation_user(toy):
    """Five per cent of four users is none; an empty split could not even be loaded again."""
    task = splits.load_task(toy, "validation")
    assert task.reviewer_ids.tolist() == ["u1"]
    assert (task.seen_items[0].tolist(), task.targets.tolist()) == ([0], [1])
    # Three items: one for test, one for validation, one to train on, with an empty history before it.
    assert prompts.split_prompt(toy.splits["train"][0]["text"]) == ("Title: Rose Soap", [""])


def test_unknown_split(toy):
    with pytest.raises(ValueError, match="unknown split 'tests': did you mean 'test'"):
        splits.load_task(toy, "tests")


def test_load_prepared_gives_back_what_prepare_wrote(prepared):
    loaded = splits.load_prepared("sample", prepared.paths.root.parent)
    pd.testing.assert_frame_equal(loaded.interactions, prepared.interactions)
    pd.testing.assert_frame_equal(loaded.catalog, prepared.catalog)
    assert loaded.splits["test"][:3] == prepared.splits["test"][:3]
    before, after = splits.load_task(prepared), splits.load_task(loaded)
    assert (before.targets == after.targets).all()
    assert all((a == b).all() for a, b in zip(before.seen_items, after.seen_items))


def test_load_prepared_says_which_notebook_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 01 with DATASET=beauty"):
        splits.load_prepared("beauty", tmp_path)


def test_training_histories_leave_out_what_is_held_out(prepared):
    histories = splits.training_histories(prepared)
    test, validation = splits.load_task(prepared), splits.load_task(prepared, "validation")
    validation_users = set(validation.reviewer_ids)
    assert len(histories) == len(test)
    for user, history, seen in zip(test.reviewer_ids, histories, test.seen_items):
        assert history.tolist() == (seen[:-1] if user in validation_users else seen).tolist()
    by_user = dict(zip(test.reviewer_ids, histories))
    for user, seen in zip(validation.reviewer_ids, validation.seen_items):
        assert by_user[user].tolist() == seen.tolist()


def test_sample_users_is_a_seeded_subset_in_order(prepared):
    task = splits.load_task(prepared)
    few = splits.sample_users(task, 50, seed=3)
    assert len(few) == len(set(few.reviewer_ids)) == 50
    assert few.reviewer_ids.tolist() == sorted(few.reviewer_ids)
    assert few.reviewer_ids.tolist() == splits.sample_users(task, 50, seed=3).reviewer_ids.tolist()
    assert few.reviewer_ids.tolist() != splits.sample_users(task, 50, seed=4).reviewer_ids.tolist()
    assert splits.sample_users(task, 0) is task
    # A smaller sample lies within a larger one, so a bigger budget only adds users.
    assert set(splits.sample_users(task, 20, seed=3).reviewer_ids) <= set(few.reviewer_ids)


def test_subset_keeps_the_order_asked_for(toy):
    task = splits.load_task(toy).subset(["u3", "u1"])
    assert task.reviewer_ids.tolist() == ["u3", "u1"]
    assert task.targets.tolist() == [2, 2]
    with pytest.raises(ValueError, match="reviewer 'u77' is not in this task"):
        splits.load_task(toy).subset(["u1", "u77"])


def test_item_numbers(toy):
    assert toy.item_numbers(["a7", "nope", "a1"]).tolist() == [6, -1, 0]


def test_the_followed_user_is_found_or_the_first_one_taken(toy):
    task = splits.load_task(toy)
    assert [splits.followed_user(task, name) for name in ("u3", "u77", "")] == [2, 0, 0]
