"""What a chapter builds in its own cells, run from the notebook and checked against numbers worked out elsewhere."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_model import TITLES, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.lessons import lesson
from gloss_utils import fusion, metrics, rankers
from gloss_utils.paths import PROJECT_ROOT
from gloss_utils.splits import Task


@pytest.fixture(scope="module")
def memory():
    """Section 3.2: shapes, counts and bytes of a QLoRA step."""
    names = ("llama", "llamas", "count_parameters", "NF4", "BF16", "FP32", "estimate_memory")
    return lesson("03_qlora_finetuning", *names)


@pytest.mark.parametrize(("model", "millions"), [("llama-3.2-1b", 11), ("llama-3.2-3b", 24), ("llama-3.1-8b", 42)])
def test_trainable_parameters_are_the_papers(memory, model, millions):
    counts = memory.count_parameters(memory.llamas[model], rank=16)
    assert round(counts["adapter"] / 1e6) == millions


def test_parameters_by_hand(memory):
    """Llama-3.2-1B: sixteen layers; query and output 2048 × 2048, key and value 2048 × 512, MLP 2048 × 8192."""
    counts = memory.count_parameters(memory.llamas["llama-3.2-1b"], rank=16)
    assert counts["projections"] == 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert counts["adapter"] == 16 * 16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert counts["other"] == 128_256 * 2048 + 33 * 2048  # tied: the head is the embedding


def test_counting_agrees_with_a_real_model(memory):
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    counts = memory.count_parameters(config, rank=4)
    real = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    assert counts["projections"] + counts["other"] == real


@pytest.mark.parametrize(("model", "peak"), [("llama-3.2-1b", 4.0), ("llama-3.2-3b", 5.5), ("llama-3.1-8b", 9.0)])
def test_estimate_is_near_the_published_peaks(memory, model, peak):
    """With texts of 512 tokens the estimate is under each of the primer's peaks, and not under half of it."""
    parts = memory.estimate_memory(memory.llamas[model], tokens=512)
    total = parts.pop("total")
    assert 0.5 * peak < total < peak
    assert total == pytest.approx(sum(parts.values()))


def test_longer_texts_cost_activations_only(memory):
    config = memory.llamas["llama-3.2-1b"]
    short, long = (memory.estimate_memory(config, tokens=tokens) for tokens in (256, 1024))
    assert long["kept activations"] == pytest.approx(4 * short["kept activations"])
    assert long["projections, 4 bit"] == short["projections, 4 bit"]


@pytest.fixture(scope="module", params=["chapter 02", "measure_baselines"])
def simple(request):
    """Section 2.2: draws in proportion to weights, the last items again; and the benchmark's, for all of Amazon."""
    if request.param == "chapter 02":
        return lesson("02_lis_baselines", "draw_items", "repeat_last")
    sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
    import measure_baselines

    sys.path.pop(0)

    def task(num_users, seen):
        return Task(np.arange(num_users).astype(str), [""] * num_users, seen, np.zeros(num_users, dtype=int))

    def draw_items(num_users, weights, **options):
        return measure_baselines.popularity_weighted(task(num_users, []), weights, **options)

    return SimpleNamespace(
        draw_items=draw_items, repeat_last=lambda seen, k: measure_baselines.repeat_last(task(len(seen), seen), k)
    )


def test_random_lists_are_distinct_seeded_and_even(simple):
    ranked = simple.draw_items(4000, np.ones(20), k=5, seed=1)
    assert (np.sort(ranked, axis=1)[:, 1:] != np.sort(ranked, axis=1)[:, :-1]).all()
    np.testing.assert_array_equal(ranked, simple.draw_items(4000, np.ones(20), k=5, seed=1))
    assert (ranked != simple.draw_items(4000, np.ones(20), k=5, seed=2)).any()
    np.testing.assert_allclose(np.bincount(ranked.ravel(), minlength=20) / ranked.size, 0.05, atol=0.006)


def test_popularity_weighted_draws_in_proportion(simple):
    """First draws follow the counts; an item that nobody bought is never drawn; a short catalog pads."""
    ranked = simple.draw_items(6000, np.array([6, 3, 1, 0]), k=5)
    np.testing.assert_allclose(np.bincount(ranked[:, 0], minlength=4) / 6000, [0.6, 0.3, 0.1, 0.0], atol=0.025)
    assert not (ranked == 3).any() and (ranked[:, 3:] == -1).all()


def test_repeat_last_is_the_history_backwards(simple):
    histories = [np.array([0, 1]), np.array([3, 4, 5, 4]), np.array([2, 3, 4, 5])]
    assert simple.repeat_last(histories, k=3).tolist() == [[1, 0, -1], [4, 5, 3], [5, 4, 3]]


CATALOG = pd.DataFrame({"asin": ["B0", "B1", "B2"], "text": TITLES[:3]})
RECORDS = [
    {
        "reviewer_id": "R0",
        "seen_asins": ["B0"],
        "generated_sequences": [TITLES[0], TITLES[2], TITLES[2], "Title: Rose Hat"],
        "sequence_scores": [-1.0, -2.0, -2.0, -5.0],
    },
    {"reviewer_id": "R1", "seen_asins": ["B0", "B2"], "generated_sequences": [""], "sequence_scores": [-3.0]},
]


def test_an_answer_ends_with_its_first_eos():
    """`generate` fills beams with EOS where PAD is token 0 (SmolLM2): chapter 04 took the filling for the answer."""
    up_to_eos = lesson("04_generation_strategies", "up_to_eos", tokenizer=SimpleNamespace(eos_token_id=2)).up_to_eos
    for written, kept in [([7, 8, 2, 2, 2], [7, 8, 2]), ([7, 2, 0, 0], [7, 2]), ([7, 8], [7, 8]), ([2, 2], [2])]:
        assert up_to_eos(torch.tensor(written)).tolist() == kept


@pytest.fixture(scope="module")
def texts():
    """Section 4.9: the generated texts as a table, and what they are like."""
    return lesson("04_generation_strategies", "text_table", "describe_texts")


def test_texts_by_hand(texts):
    table = texts.text_table(RECORDS, CATALOG, tiny_tokenizer())
    assert table["is_item"].tolist() == [True, True, True, False, False]
    assert table["is_seen"].tolist() == [True, False, False, False, False]
    assert table["position"].tolist() == [1, 2, 3, 4, 1]
    assert table["score"].tolist() == [-1, -2, -2, -5, -3] and table["tokens"].iloc[4] == 0
    summary = texts.describe_texts(table, limit=50)
    assert summary["texts per user"] == pytest.approx(2.5)
    assert summary["distinct per user"] == pytest.approx(2.0)
    assert summary["exact item"] == pytest.approx(3 / 5)
    assert summary["seen item"] == summary["empty"] == pytest.approx(1 / 5)


def test_a_text_at_the_limit_is_counted(texts):
    table = texts.text_table(RECORDS, CATALOG, tiny_tokenizer())
    longest = int(table["tokens"].max())
    assert texts.describe_texts(table, limit=longest + 1)["at the limit"] > 0
    assert texts.describe_texts(table, limit=longest + 2)["at the limit"] == 0


@pytest.fixture(scope="module")
def tables():
    """Sections 6.1 and 6.3: thresholds by quantiles, and the layout of the paper's Tables 5 and 6."""
    return lesson("06_user_segments", "quantile_thresholds", "table_5", "like_table_6")


def test_shares_by_hand(tables):
    lengths = np.array([3, 5, 6, 16])
    table = tables.table_5(metrics.assign_segments(lengths, (5, 14)), lengths)
    assert table["users"].tolist() == [2, 1, 1]
    assert table["interactions"].tolist() == [8, 6, 16]
    np.testing.assert_allclose(table["user_share"], [50, 25, 25])
    np.testing.assert_allclose(table["interaction_share"], [100 * 8 / 30, 20, 100 * 16 / 30])


def test_an_empty_segment_has_no_mean(tables):
    lengths = np.array([3, 4, 9])
    table = tables.table_5(metrics.assign_segments(lengths, (5, 14)), lengths)
    assert table.loc["power", "users"] == 0 and np.isnan(table.loc["power", "mean_length"])


def test_quantile_thresholds_make_the_shares(tables):
    lengths = np.arange(1, 101)
    assert tables.quantile_thresholds(lengths) == (30, 90)
    assert tables.table_5(metrics.assign_segments(lengths, (30, 90)), lengths)["users"].tolist() == [30, 60, 10]


def test_a_system_is_a_row_and_a_supported_best_segment_has_a_star(tables):
    names, ids = np.repeat(["cold-start", "regular"], 300), [f"u{number}" for number in range(600)]
    systems = {"GLoSS": np.repeat([0.0, 1.0], 300), "LIS": np.zeros(600)}
    measured = {name: pd.DataFrame({"reviewer_id": ids, "recall@5": recall}) for name, recall in systems.items()}
    by_system = {name: metrics.by_segment(per_user, names) for name, per_user in measured.items()}
    table = tables.like_table_6(by_system, "recall@5")
    assert table.index.tolist() == ["GLoSS", "LIS"]
    assert table.loc["GLoSS", "regular"] == "1.0000 [1.0000, 1.0000]*"
    assert "*" not in "".join(table.loc["LIS"])


class Known:
    """A signal with given scores per user and item."""

    def __init__(self, scores):
        self.scores = {str(user): np.float32(row) for user, row in enumerate(scores)}

    def score(self, task):
        return np.stack([self.scores[user] for user in task.reviewer_ids])


def users_of(seen, targets):
    count = len(targets)
    return Task(np.arange(count).astype(str), [""] * count, [np.array(items) for items in seen], np.array(targets))


def test_trees_learn_what_a_sum_cannot_say():
    """Section 7.11. The target is the item on which both signals agree most: no weighted sum of them finds that."""
    learn = lesson("07_beyond_text", "learn", SEED=42).learn
    rng = np.random.default_rng(0)
    one, two = rng.uniform(0.1, 1, (2, 600, 6))
    targets = np.abs(one - two)[:, 1:].argmin(axis=1) + 1  # item 0 was bought
    task, signals = users_of([[0]] * 600, targets), {"one": Known(one), "two": Known(two)}
    table, weights = fusion.gather_candidates(signals, task), {"one": 1.0, "two": 1.0}
    trees, curve = learn(table, np.array([1.0, 1.0]), task, most=60)
    ranked = rankers.rank_learned(trees, signals, weights, task, k=1).items
    sums = np.where(np.arange(6) == 0, -np.inf, one + two).argmax(axis=1)
    assert not (ranked == 0).any() and max(curve) > curve[0]
    assert (ranked[:, 0] == targets).mean() > (sums == targets).mean() + 0.2
    again, _ = learn(table, np.array([1.0, 1.0]), task, most=60)
    assert again.model_to_string() == trees.model_to_string()


def test_sasrec_trains_as_long_as_it_is_told_or_until_it_stops_getting_better():
    """Section 7.10: a chain of items that always follow each other is learned; without validation, all epochs run."""
    made = lesson("07_beyond_text", "evaluate", "train_epoch", "train_sasrec", num_items=6, SEED=42)
    histories = [np.roll(np.arange(6), turn)[:4] for turn in range(6)] * 40
    task = users_of([items[:-1] for items in histories[:6]], [items[-1] for items in histories[:6]])
    signal, log = made.train_sasrec(histories, 30, None, task, patience=2)
    assert log["epoch"].tolist() == list(range(1, len(log) + 1)) and log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert (signal.score(task).argmax(axis=1) == task.targets).all()
    _, whole = made.train_sasrec(histories, 3)
    assert len(whole) == 3 and "ndcg@10" not in whole
