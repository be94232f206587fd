"""Ranking policies against a slow version in plain Python, and by hand."""

import math

import numpy as np
import pytest

from gloss_utils.ranking import POLICIES, rank_items, rank_with_scores, stack_queries
from gloss_utils.retrieval import Hits

NUM_ITEMS = 12  # few, so that texts share items and users have seen many of them


def slow_lists(user_items, user_scores, policy, k, seen, log_probs, weight):
    """One user, one step at a time: [(item, score), ...]."""
    order = range(len(user_items))
    if log_probs is not None:
        order = sorted(order, key=lambda text: -log_probs[text])
    texts = []
    for text in order:
        hits = [(i, s) for i, s in zip(user_items[text], user_scores[text]) if i >= 0 and i not in seen]
        texts.append((hits, None if log_probs is None else log_probs[text]))
    if policy in ("unseen", "round_robin", "calrec"):
        rounds = []
        for _ in range(1 if policy == "unseen" else 100):
            rounds.append([])
            for hits, log_prob in texts:
                taken = {pick[0] for picks in rounds for pick in picks}
                rounds[-1] += [(item, score, log_prob) for item, score in hits if item not in taken][:1]
    if policy in ("unseen", "round_robin"):
        flat = [pick for picks in rounds for pick in picks]
        return [(pick[0], 1 / (place + 1)) for place, pick in enumerate(flat)][:k]
    if policy == "calrec":
        top = max((score for picks in rounds for _, score, _ in picks), default=0)
        likeliest = max(log_probs)
        keyed = [
            (item, (1 - weight) * score / top + weight * math.exp(log_prob - likeliest) - number)
            for number, picks in enumerate(rounds)
            for item, score, log_prob in picks
        ]
        return sorted(((i, round(v, 12)) for i, v in keyed), key=lambda pair: (-pair[1], pair[0]))[:k]
    best = {}
    for place, (hits, _) in enumerate(texts):
        for rank, (item, retrieval_score) in enumerate(hits, start=1):
            if policy == "score":
                value = retrieval_score if rank == 1 else None
            elif policy == "beam_order":
                value = -place if rank == 1 else None
            else:
                value = best.get(item, 0) + 1 / (60 + rank)
            if value is not None:
                best[item] = max(value, best.get(item, -math.inf))
    ranked = sorted(((i, round(v, 12)) for i, v in best.items()), key=lambda pair: (-pair[1], pair[0]))[:k]
    if policy == "beam_order":
        return [(item, 1 / (place + 1)) for place, (item, _) in enumerate(ranked)]
    return ranked


def random_hits(rng, num_users, texts, depth):
    """Hits with ties in the scores, pads at the end of some rows, and rows that are all pads."""
    items = np.stack([rng.permutation(NUM_ITEMS)[:depth] for _ in range(num_users * texts)])
    scores = -np.sort(-rng.integers(1, 5, items.shape).astype(np.float32), axis=1)
    lengths = rng.choice([0, 1, depth, depth], size=len(items))
    pads = np.arange(depth) >= lengths[:, None]
    return Hits(np.where(pads, -1, items), np.where(pads, -np.inf, scores).astype(np.float32))


@pytest.mark.parametrize(
    ("policy", "with_seen"),
    [(policy, seen) for policy in POLICIES for seen in (True, False) if seen or policy != "unseen"],
)
def test_policy_equals_the_slow_version(policy, with_seen):
    rng = np.random.default_rng(0)
    for texts, depth, k in [(5, 6, 10), (1, 4, 3), (3, 1, 5), (4, 6, 1)]:
        num_users = 60
        hits = random_hits(rng, num_users, texts, depth)
        seen = [rng.permutation(NUM_ITEMS)[: rng.integers(0, 6)] for _ in range(num_users)]
        log_probs = -rng.integers(0, 4, num_users * texts) / 2 if policy == "calrec" or with_seen else None
        ranked, scores = rank_with_scores(
            hits, texts, policy, k, seen if with_seen else None, query_scores=log_probs, weight=0.3
        )
        assert ranked.shape == scores.shape == (num_users, k) and ranked.dtype == np.int64
        for user in range(num_users):
            rows = slice(user * texts, (user + 1) * texts)
            want = slow_lists(
                hits.items[rows].tolist(),
                hits.scores[rows].tolist(),
                policy,
                k,
                set(seen[user].tolist()) if with_seen else set(),
                None if log_probs is None else log_probs[rows].tolist(),
                0.3,
            )
            size = len(want)
            assert ranked[user, :size].tolist() == [item for item, _ in want]
            np.testing.assert_allclose(scores[user, :size], [value for _, value in want], atol=1e-9)
            assert (ranked[user, size:] == -1).all() and np.isneginf(scores[user, size:]).all()


# One user, three texts. The first and second find item 7 first; item 9 is seen.
BY_HAND = Hits(
    np.array([[7, 4, 2], [7, 5, 4], [9, 6, -1]]),
    np.array([[3.0, 2.0, 1.0], [8.0, 5.0, 1.0], [6.0, 4.0, -np.inf]], dtype=np.float32),
)


@pytest.mark.parametrize(
    ("policy", "seen", "want"),
    [
        ("score", None, [7, 9]),  # 7 keeps the 8 of the second text; the list is short
        ("score", [9], [7, 6]),  # 6 moves up in the third text
        ("beam_order", None, [7, 9]),
        ("beam_order", [9], [7, 6]),
        ("unseen", [9], [7, 5, 6]),  # the second text cannot have 7, and gives 5
        ("round_robin", None, [7, 5, 9, 4, 6]),  # then: 4; nothing (4 is taken); 6 ...
        ("rrf", None, [7, 4, 9]),  # 2/61, then 1/62 + 1/63, then 1/61 before the 1/62 of 5 and 6
    ],
)
def test_policy_by_hand(policy, seen, want):
    seen = None if seen is None else [np.array(seen)]
    ranked = rank_items(BY_HAND, 3, policy, k=10, seen=seen)[0].tolist()
    assert ranked[: len(want)] == want
    if policy in ("score", "beam_order", "unseen"):
        assert ranked[len(want) :] == [-1] * (10 - len(want))


def test_calrec_by_hand():
    """Matches .2 and 1, likelihoods 1 and .5, w = 1/2: item 3 has .5·1 + .5·.5 = .75, item 1 .5·.2 + .5·1 = .6."""
    hits = Hits(np.array([[1], [3]]), np.array([[2.0], [10.0]], dtype=np.float32))
    ranked, scores = rank_with_scores(hits, 2, "calrec", 2, query_scores=np.log([1.0, 0.5]), weight=0.5)
    assert ranked.tolist() == [[3, 1]]
    np.testing.assert_allclose(scores, [[0.75, 0.6]])
    # All weight on the text's probability: the likelier text comes first.
    assert rank_items(hits, 2, "calrec", 2, query_scores=np.log([1.0, 0.5]), weight=1.0).tolist() == [[1, 3]]


def test_equal_scores_go_to_the_lower_item():
    hits = Hits(np.array([[8], [3], [5]]), np.ones((3, 1), dtype=np.float32))
    assert rank_items(hits, 3, "score", 3).tolist() == [[3, 5, 8]]


def test_round_robin_starts_as_unseen_and_fills_ten():
    rng = np.random.default_rng(1)
    items = np.stack([rng.permutation(100)[:20] for _ in range(50 * 5)])
    hits = Hits(items, -np.sort(-rng.random(items.shape), axis=1))
    seen = [rng.permutation(100)[:10] for _ in range(50)]
    unseen = rank_items(hits, 5, "unseen", 10, seen)
    filled = rank_items(hits, 5, "round_robin", 10, seen)
    assert (unseen[:, :5] == filled[:, :5]).all() and (unseen[:, 5:] == -1).all() and (filled >= 0).all()


def test_texts_are_taken_by_their_log_probability():
    hits = Hits(np.array([[1], [2], [3]]), np.ones((3, 1), dtype=np.float32))
    assert rank_items(hits, 3, "beam_order", 3, query_scores=[-3.0, -1.0, np.nan]).tolist() == [[2, 1, 3]]


@pytest.mark.parametrize("policy", POLICIES)
def test_only_empty_texts_give_an_empty_list(policy):
    nothing = Hits(np.full((4, 3), -1), np.full((4, 3), -np.inf, dtype=np.float32))
    query_scores = np.array([-1.0, -np.inf, -np.inf, -np.inf])
    seen = [np.array([1]), np.array([], dtype=np.int64)]
    ranked, scores = rank_with_scores(nothing, 2, policy, 5, seen, query_scores)
    assert (ranked == -1).all() and np.isneginf(scores).all()


def test_nobody_has_seen_anything():
    empty = [np.array([], dtype=np.int64)] * 2
    hits = Hits(np.array([[0], [1]]), np.ones((2, 1), dtype=np.float32))
    assert rank_items(hits, 1, "unseen", 1, empty).tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "beamorder"}, "unknown policy 'beamorder': did you mean 'beam_order'"),
        ({"policy": "unseen"}, "needs seen"),
        ({"policy": "calrec"}, "needs query_scores"),
        ({"k": 0}, "k is 0: it must be a whole number from 1 to"),
        ({"queries_per_user": 2}, "3 queries cannot be split into 2 per user"),
        ({"seen": [[], []]}, "seen has 2 users, the hits have 1"),
        ({"query_scores": [0.0]}, "1 query_scores for 3 queries"),
        ({"weight": math.nan}, "weight is nan: it must be a number from 0 to 1"),
        ({"hits": BY_HAND._replace(items=BY_HAND.items + 0.5)}, "hits are not item numbers with finite scores"),
        ({"hits": BY_HAND._replace(scores=BY_HAND.scores * np.nan)}, "hits are not item numbers with finite scores"),
        ({"seen": [[-7]]}, "seen holds something else than item numbers"),
    ],
)
def test_inputs_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rank_items(**{"hits": BY_HAND, "queries_per_user": 3, **arguments})


def test_fewer_texts_are_padded():
    records = [
        {"generated_sequences": ["a", "b"], "sequence_scores": [-1.0, -2.0]},
        {"generated_sequences": ["c"], "sequence_scores": [-3.0]},
    ]
    texts, width, log_probs = stack_queries(records)
    assert (texts, width) == (["a", "b", "c", ""], 2)
    assert log_probs.tolist() == [-1.0, -2.0, -3.0, -np.inf]
    assert stack_queries([{"generated_sequences": ["a"]}])[2] is None
    assert stack_queries([{"generated_sequences": []}])[:2] == ([""], 1)
