"""What each sampling option does to the choice of a token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.executor.slow_sampling import SlowSampler

from minitron_trt.errors import BadInputError, MinitronError
from minitron_trt.executor.row_scores import RowScores
from minitron_trt.executor.sampling import Sampler, Sampling, log_prob
from minitron_trt.executor.step import Floats

VOCAB = 8
RISING = np.arange(VOCAB, dtype=np.float32)  # the last token is the best

rows = st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB).map(
    lambda values: np.array(values, dtype=np.float32)
)


def draws(sampling: Sampling, logits: Floats, count: int = 400) -> Counter[int]:
    """Return how often each token is drawn from the same logits, none of them accepted."""
    sampler = Sampler(sampling, (), len(logits))
    return Counter(sampler.choose(logits) for _ in range(count))


def after(sampling: Sampling, logits: Floats, generated: tuple[int, ...], prompt: Any = ()) -> int:
    """Return the token chosen once others were generated."""
    sampler = Sampler(sampling, prompt, len(logits))
    for token in generated:
        sampler.accept(token)
    return sampler.choose(logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected a number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan; expected a number of at least 0"),
        ({"temperature": math.inf}, "temperature is inf; expected a number of at least 0"),
        ({"top_k": -1}, "top_k is -1; expected 0 (off) or more"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a number above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01; expected a number above 0 and at most 1"),
        ({"top_p": math.nan}, "top_p is nan; expected a number above 0 and at most 1"),
        ({"min_p": 2.0}, "min_p is 2.0; expected a number from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; expected a number above 0"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan; expected a finite number"),
        ({"frequency_penalty": -math.inf}, "frequency_penalty is -inf; expected a finite number"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 2**64 - 1"),
        ({"min_tokens": -2}, "min_tokens is -2; expected 0 or more"),
        ({"stop_words": ((1,), ())}, "stop_words[1] is []; expected one or more ids of 0 or more"),
        ({"bad_words": ((-3,),)}, "bad_words[0] is [-3]; expected one or more ids of 0 or more"),
    ],
)
def test_nonsense_is_refused_by_the_name_the_user_wrote(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        Sampling(**options)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("sampling", "greedy"),
    [
        (Sampling(), True),
        (Sampling(temperature=0.0, top_k=50, top_p=0.9), True),
        (Sampling(temperature=2.0, top_k=1), True),
        (Sampling(min_p=0.1, seed=3), True),
        (Sampling(temperature=1.0), True),
        (Sampling(temperature=1.0, top_k=0), True),
        (Sampling(top_k=2), False),
        (Sampling(top_p=1.0), False),
        (Sampling(top_k=0, top_p=0.5), False),
    ],
    ids=repr,
)
def test_sampling_is_greedy_unless_top_k_or_top_p_asks_for_draws(
    sampling: Sampling, greedy: bool
) -> None:
    assert sampling.greedy is greedy


@given(rows)
def test_a_greedy_choice_is_the_largest_logit(logits: Floats) -> None:
    assert Sampler(Sampling(), (), VOCAB).choose(logits) == int(logits.argmax())


@given(rows, st.integers(1, VOCAB), st.integers(0, 2**64 - 1))
def test_top_k_draws_only_from_the_k_best(logits: Floats, k: int, seed: int) -> None:
    token = Sampler(Sampling(temperature=5.0, top_k=k, seed=seed), (), VOCAB).choose(logits)

    assert np.count_nonzero(logits > logits[token]) < k


@given(rows, st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_top_p_draws_only_what_the_better_tokens_leave_room_for(
    logits: Floats, share: float, seed: int
) -> None:
    token = Sampler(Sampling(top_p=share, seed=seed), (), VOCAB).choose(logits)
    chances = np.exp(logits.astype(np.float64))
    chances /= chances.sum()
    better = chances > chances[token] * (1 + 1e-9)

    assert chances[better].sum() < share + 1e-9


@given(rows, st.floats(0.01, 1.0), st.integers(0, 2**32))
def test_min_p_draws_only_tokens_near_the_best(logits: Floats, share: float, seed: int) -> None:
    token = Sampler(Sampling(top_p=1.0, min_p=share, seed=seed), (), VOCAB).choose(logits)

    assert math.exp(float(logits[token]) - float(logits.max())) >= share * (1 - 1e-9)


@pytest.mark.slow
def test_draws_follow_the_softmax_of_the_scaled_logits() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.7], dtype=np.float32))
    found = draws(Sampling(temperature=0.5, top_p=1.0, seed=1), logits, 20_000)
    squares = np.array([0.1, 0.2, 0.7]) ** 2
    expected = squares / squares.sum()

    assert np.allclose([found[token] / 20_000 for token in range(3)], expected, atol=0.01)


def test_top_k_comes_before_top_p() -> None:
    # Of the two best alone, the best has 0.6 of the chance; of all four, 0.3.
    logits = np.log(np.array([0.3, 0.2, 0.25, 0.25], dtype=np.float32))

    assert set(draws(Sampling(top_k=2, top_p=0.5, seed=2), logits)) == {0}
    assert len(draws(Sampling(top_p=0.5, seed=2), logits)) == 2


@pytest.mark.slow
def test_a_nucleus_of_more_than_a_thousand_tokens_is_found() -> None:
    logits = np.zeros(5000, dtype=np.float32)
    logits[:10] = -30.0
    found = draws(Sampling(top_p=0.9, seed=3), logits, 3000)

    assert min(found) >= 10
    assert len(found) > 1500


def test_a_huge_temperature_makes_all_but_the_banned_alike() -> None:
    logits = 4 * np.random.default_rng(0).normal(size=3000).astype(np.float32)
    logits[:1000] = -math.inf
    sampling = Sampling(temperature=1e300, top_p=0.5, seed=3, bad_words=((1500,),))
    fast, slow = Sampler(sampling, (), 3000), SlowSampler(sampling, ())
    found = [fast.choose(logits) for _ in range(300)]

    assert found == [slow.choose(logits) for _ in range(300)]
    assert min(found) >= 1000
    assert 1900 < max(found) < 2001


@pytest.mark.parametrize("temperature", [1e-300, 1e-8])
def test_a_tiny_temperature_takes_the_best(temperature: float) -> None:
    assert draws(Sampling(temperature=temperature, top_p=1.0, seed=4), RISING) == {VOCAB - 1: 400}


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_the_same_seed_draws_the_same_tokens(seed: int) -> None:
    flat = np.zeros(100, dtype=np.float32)
    one, other, different = (
        Sampler(Sampling(top_p=1.0, seed=number), (), 100)
        for number in (seed, seed, (seed + 1) % 2**64)
    )
    first = [one.choose(flat) for _ in range(50)]

    assert [other.choose(flat) for _ in range(50)] == first
    assert [different.choose(flat) for _ in range(50)] != first


@pytest.mark.parametrize(
    ("sampling", "generated", "chosen"),
    [
        (Sampling(bad_words=((7,),)), (), 6),
        (Sampling(bad_words=((7,), (6,))), (), 5),
        (Sampling(bad_words=((1, 2, 7),)), (1, 2), 6),
        (Sampling(bad_words=((1, 2, 7),)), (0, 1, 2), 6),
        (Sampling(bad_words=((1, 2, 7),)), (2, 1), 7),
        (Sampling(bad_words=((1, 2, 7),)), (2,), 7),
        (Sampling(bad_words=((1, 2, 7),)), (), 7),
        (Sampling(bad_words=((99,),)), (), 7),
        (Sampling(end_ids=(7,), min_tokens=2), (1,), 6),
        (Sampling(end_ids=(7,), min_tokens=2), (1, 1), 7),
        (Sampling(end_ids=(7, 99), min_tokens=1), (), 6),
    ],
    ids=repr,
)
def test_masks_ban_the_last_token_of_a_bad_word_and_early_end_ids(
    sampling: Sampling, generated: tuple[int, ...], chosen: int
) -> None:
    assert after(sampling, RISING, generated) == chosen


@pytest.mark.parametrize(
    ("prompt", "generated", "chosen"),
    [((1, 2), (), 6), ((1,), (2,), 6), ((0, 1), (2,), 6), ((2,), (), 7), ((2,), (1,), 7)],
)
def test_a_bad_word_may_begin_in_the_prompt(
    prompt: tuple[int, ...], generated: tuple[int, ...], chosen: int
) -> None:
    assert after(Sampling(bad_words=((1, 2, 7),)), RISING, generated, prompt) == chosen


@pytest.mark.parametrize("top", [{"top_p": 1.0}, {"top_k": 3}], ids=repr)
def test_banned_tokens_are_never_drawn(top: dict[str, Any]) -> None:
    sampling = Sampling(temperature=100.0, **top, bad_words=((7,), (0,)), seed=5)

    assert not {0, 7} & set(draws(sampling, RISING, 2000))


@pytest.mark.parametrize(
    ("options", "generated", "prompt", "chosen"),
    [
        # 7 / 1.5 is below 6; a token counts once however often it was seen, in the prompt too.
        ({"repetition_penalty": 1.5}, (7,), (), 6),
        ({"repetition_penalty": 1.5}, (), (7, 7, 7), 6),
        ({"repetition_penalty": 1.1}, (7, 7, 7), (7,), 7),
        ({"presence_penalty": 1.5}, (7,), (), 6),
        ({"presence_penalty": 1.5}, (), (7,), 6),
        ({"frequency_penalty": 0.6}, (7,), (7,), 6),
        # Logits are divided by the temperature first, so a penalty weighs less at a low one.
        ({"presence_penalty": 1.5, "temperature": 0.5}, (7,), (), 7),
        ({"presence_penalty": 1.5, "temperature": 0.0}, (7,), (), 7),
        ({"repetition_penalty": 1.5, "temperature": 0.0}, (7,), (), 6),
        ({"frequency_penalty": 0.6}, (7,), (), 7),
        ({"frequency_penalty": 0.6}, (7, 7), (), 6),
        ({"presence_penalty": -2.0}, (6,), (), 6),
    ],
    ids=repr,
)
def test_penalties_weigh_what_was_seen(
    options: dict[str, float],
    generated: tuple[int, ...],
    prompt: tuple[int, ...],
    chosen: int,
) -> None:
    assert after(Sampling(**options), RISING, generated, prompt) == chosen  # type: ignore[arg-type]


def test_repetition_penalty_pushes_negative_logits_down() -> None:
    logits = np.array([-1.0, -1.5], dtype=np.float32)

    assert after(Sampling(repetition_penalty=2.0), logits, (0,)) == 1


@pytest.mark.parametrize(
    ("sampling", "generated", "plain"),
    [
        (Sampling(), 0, True),
        (Sampling(temperature=0.7), 0, True),
        (Sampling(top_p=1.0), 0, False),
        (Sampling(embedding_bias=np.zeros(VOCAB, np.float32)), 0, False),
        (Sampling(presence_penalty=0.1), 0, False),
        (Sampling(bad_words=((1,),)), 0, False),
        (Sampling(min_tokens=2), 1, False),
        (Sampling(min_tokens=2), 2, True),
    ],
    ids=repr,
)
def test_only_an_unadjusted_greedy_choice_is_plain(
    sampling: Sampling, generated: int, plain: bool
) -> None:
    sampler = Sampler(sampling, (), VOCAB)
    for _ in range(generated):
        sampler.accept(3)

    assert sampler.plain is plain


def test_an_embedding_bias_comes_before_everything_else() -> None:
    bias = np.zeros(VOCAB, np.float32)
    bias[3] = 8.0  # to 11, and by the penalty of 1.5 to 7.3

    assert after(Sampling(embedding_bias=bias), RISING, ()) == 3
    assert after(Sampling(embedding_bias=bias, repetition_penalty=1.5), RISING, (3,)) == 3
    assert after(Sampling(embedding_bias=bias, repetition_penalty=1.6), RISING, (3,)) == 7
    assert set(draws(Sampling(embedding_bias=bias * 9, top_k=5, seed=1), RISING)) == {3}


def test_an_embedding_bias_of_minus_infinity_bans_a_token() -> None:
    bias = np.zeros(VOCAB, np.float32)
    bias[7] = -np.inf

    assert 7 not in draws(Sampling(embedding_bias=bias, top_p=1.0, temperature=9.0), RISING)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_bias_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(BadInputError, match=rf"embedding_bias\[2\] is {value}; expected a number"):
        Sampling(embedding_bias=np.array([0.0, -np.inf, value], np.float32))


def test_sequences_of_one_request_draw_with_seeds_that_follow_each_other() -> None:
    flat = np.zeros(100, dtype=np.float32)
    third = Sampler(Sampling(top_p=1.0, seed=2**64 - 1), (), 100, sequence=2)
    other = Sampler(Sampling(top_p=1.0, seed=1), (), 100)

    assert [third.choose(flat) for _ in range(20)] == [other.choose(flat) for _ in range(20)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=1.0)], ids=repr)
def test_logits_that_are_not_numbers_are_an_error(value: float, sampling: Sampling) -> None:
    logits = RISING.copy()
    logits[2] = value

    with pytest.raises(MinitronError, match="the model's best logit is"):
        Sampler(sampling, (), VOCAB).choose(logits)


@given(rows)
def test_log_probs_are_those_of_the_model_and_add_up_to_one(logits: Floats) -> None:
    assert sum(math.exp(log_prob(logits, token)) for token in range(VOCAB)) == pytest.approx(1)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=300),
    st.sets(st.integers(0, 299), max_size=9),
    st.integers(1, 300),
)
def test_the_largest_are_those_of_a_full_sort(
    values: list[int], special: set[int], count: int
) -> None:
    ids = np.array(sorted(at for at in special if at < len(values)), np.intp)
    own = ids.astype(np.float64) % 5 - 1
    row = np.array(values, np.float32)
    every = row / 2.0
    every[ids] = own
    found, scores = RowScores(row, 2.0, ids, own).largest(count)
    expected = np.argsort(-every, kind="stable")[:count]

    assert found.tolist() == expected.tolist()
    assert scores.tolist() == every[expected].tolist()


def test_a_nan_that_a_penalty_meets_is_no_number() -> None:
    logits = np.array([1.0, math.nan, 0.0], dtype=np.float32)

    with pytest.raises(MinitronError, match="the model's best logit is nan"):
        Sampler(Sampling(presence_penalty=1.0), (1,), 3).choose(logits)


# Logits as a model has them, rounded to bf16 with its many ties, flat, and all alike.
SHAPES: Final[dict[str, Callable[[np.random.Generator], Any]]] = {
    "peaked": lambda draw: draw.standard_normal(5000) * 2 + draw.exponential(0.2, 5000) ** 3,
    "rounded": lambda draw: (draw.standard_normal(5000) * 3).astype(ml_dtypes.bfloat16),
    "flat": lambda draw: draw.standard_normal(5000) * 0.1,
    "alike": lambda draw: np.repeat([1.0, -math.inf], [4000, 1000]),
    "masked": lambda draw: np.where(
        draw.random(5000) < 0.5, np.finfo(np.float32).min, draw.standard_normal(5000) * 4
    ),
}
options = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**32)},
    optional={
        "temperature": st.sampled_from([1e-8, 0.3, 0.8, 1.0, 3.0]),
        "top_k": st.sampled_from([1, 2, 50, 1000, 4999, 10_000]),
        "top_p": st.sampled_from([1e-3, 0.5, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.01, 0.2]),
        "repetition_penalty": st.sampled_from([0.5, 1.2]),
        "presence_penalty": st.sampled_from([-2.0, 0.7]),
        "frequency_penalty": st.sampled_from([-0.5, 0.3]),
        "min_tokens": st.just(2),
        "end_ids": st.just((7, 4999)),
        "bad_words": st.just(((3,), (11,))),
        "embedding_bias": st.just(np.linspace(-2, 2, 5000, dtype=np.float32)),
    },
)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60, deadline=None)
@given(options, st.integers(0, 2**32), st.integers(0, 300))
def test_the_tokens_are_those_of_whole_vocabularies(
    shape: str, chosen: dict[str, Any], seed: int, prompt_tokens: int
) -> None:
    draw = np.random.default_rng(seed)
    prompt = draw.integers(0, 5000, prompt_tokens).tolist()
    sampling = Sampling(**chosen)
    fast, slow = Sampler(sampling, prompt, 5000), SlowSampler(sampling, prompt)
    for _ in range(4):
        logits = SHAPES[shape](draw).astype(np.float32)
        before = logits.copy()
        token = slow.choose(logits)

        assert fast.choose(logits, int(logits.argmax())) == token
        assert np.array_equal(logits, before)
        fast.accept(token)
        slow.generated.append(token)
