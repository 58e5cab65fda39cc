import numpy as np
import pytest
import torch

from selfsight.philox import Purpose, integers, normal, permutation, philox4x32, seed_for, uniform

# The published known-answer vectors of Random123 for philox4x32 with 10 rounds.
KNOWN = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    assert philox4x32(*counter, *key) == answer


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
@pytest.mark.parametrize(
    "array",
    [lambda v: np.array([v], np.int64), lambda v: torch.tensor([v])],
    ids=["numpy", "torch"],
)
def test_known_answers_in_arrays(counter, key, answer, array):
    words = philox4x32(*map(array, counter), *key)
    assert [int(word[0]) for word in words] == list(answer)


def test_numpy_and_torch_draw_the_same():
    position = np.array([0, 1, 7, 2**31 + 5, 2**40 + 3], np.int64)
    for function in (integers, uniform):
        ours = function(12345678901, position, Purpose.VIEW, 11, view=3)
        theirs = function(12345678901, torch.from_numpy(position), Purpose.VIEW, 11, view=3)
        assert theirs.dtype == (torch.int64 if function is integers else torch.float32)
        np.testing.assert_array_equal(ours, theirs.numpy())
    close = normal(5, torch.from_numpy(position), Purpose.NOISE, 8)
    np.testing.assert_allclose(normal(5, position, Purpose.NOISE, 8), close.numpy(), atol=1e-5)


def test_every_part_of_the_address_matters():
    def draw(seed=1, position=2, purpose=Purpose.VIEW, view=0):
        return integers(seed, position, purpose, 4, view).tolist()

    others = [
        draw(),
        draw(seed=2),
        draw(seed=1 + 2**32),
        draw(position=3),
        draw(position=2 + 2**32),
        draw(purpose=Purpose.MASK),
        draw(view=1),
    ]
    assert len({tuple(words) for words in others}) == len(others)


def test_a_longer_draw_begins_like_a_shorter_one():
    np.testing.assert_array_equal(
        uniform(0, 9, Purpose.MASK, 3), uniform(0, 9, Purpose.MASK, 30)[:3]
    )


def test_uniform_and_normal_have_their_moments():
    u = uniform(3, np.arange(5000), Purpose.VIEW, 20)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.001
    x = normal(3, np.arange(5000), Purpose.NOISE, 20)
    assert np.isfinite(x).all()
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1]) < 0.05


def test_permutation_is_one_and_depends_on_its_address():
    p = permutation(0, 0, Purpose.ORDER, 1000)
    assert sorted(p) == list(range(1000))
    assert not np.array_equal(p, permutation(0, 1, Purpose.ORDER, 1000))
    assert not np.array_equal(p, permutation(1, 0, Purpose.ORDER, 1000))
    np.testing.assert_array_equal(p, permutation(0, 0, Purpose.ORDER, 1000))
    first = np.array([permutation(s, 0, Purpose.ORDER, 5)[0] for s in range(2000)])
    assert abs(np.bincount(first) / 2000 - 0.2).max() < 0.04


def test_seeds_fit_torch():
    assert 0 <= seed_for(7, 3, Purpose.INIT) < 2**62
    assert seed_for(7, 3, Purpose.INIT) != seed_for(7, 4, Purpose.INIT)
