"""The fitted model of sensitivities, and the order of probes that it leads to."""

import numpy as np
import pytest

from quantmill.sensitivity import order, predict
from quantmill.sensitivity.predict import Table, cross_validated, fit

TYPES = 8
NOISE = 0.08 * 0.35 ** np.arange(TYPES)
BIAS = np.where(np.arange(TYPES) % 3 == 1, 0.04, 0.002)
ROLES = ["ffn_up", "ffn_down", "attn_q", "attn_v"]


def world(tensors: int = 24, *, seed: int = 1, noise: float = 0.05) -> tuple[Table, np.ndarray]:
    """Choices whose KLD is the model's own, times a little noise."""
    random = np.random.default_rng(seed)
    roles = [ROLES[t % len(ROLES)] for t in range(tensors)]
    log_a = np.array([-4.0 - ROLES.index(role) for role in roles]) + 0.7 * random.standard_normal(tensors)
    log_r = 2.5 + random.standard_normal(tensors)
    tensor = np.repeat(np.arange(tensors), TYPES)
    own, bias2 = np.tile(NOISE, tensors), np.tile(BIAS**2, tensors)
    log = log_a[tensor] + np.log(own + np.exp(log_r[tensor]) * bias2)
    kld = np.exp(log + noise * random.standard_normal(len(log)))
    size = np.tile(30000.0 + 9000 * np.arange(TYPES), tensors)
    return Table(tensor, roles, size, np.full(len(tensor), 65536.0), own, bias2), kld


def only(kld: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, kld, np.nan)


def miss(prediction: predict.Prediction, kld: np.ndarray, mask: np.ndarray) -> float:
    return float(np.sqrt(np.mean((prediction.log - np.log(kld))[mask] ** 2)))


def test_two_probes_a_tensor_give_its_whole_curve():
    table, kld = world()
    column = np.tile(np.arange(TYPES), 24)
    probed = np.isin(column, [1, 3])  # one with a bias, one without
    prediction = fit(table, only(kld, probed), 0.03 * kld)
    assert miss(prediction, kld, ~probed) < 0.35
    # scaling the error alone goes wrong where there is a bias
    scaled = np.log(table.noise + table.bias2)
    gain = (np.log(kld) - scaled)[column == 3]
    naive = predict.Prediction(scaled + gain[table.tensor], np.zeros(len(kld)), {})
    assert miss(naive, kld, ~probed) > 2 * miss(prediction, kld, ~probed)


def test_the_standard_deviations_are_honest():
    table, kld = world(60, seed=2)
    probed = np.tile(np.arange(TYPES), 60) == 3
    prediction = fit(table, only(kld, probed), 0.03 * kld)
    off = (prediction.log - np.log(kld))[~probed] / np.sqrt(prediction.variance[~probed])
    assert 0.5 < off.std() < 1.5
    both = fit(table, only(kld, np.isin(np.tile(np.arange(TYPES), 60), [1, 3])), 0.03 * kld)
    assert both.variance[~probed].mean() < prediction.variance[~probed].mean()


def test_a_tensor_without_a_probe_is_predicted_from_its_role():
    table, kld = world(40, seed=3)
    probed = table.tensor >= 4  # the first of each role is left out
    prediction = fit(table, only(kld, probed), 0.03 * kld)
    means = [prediction.log[table.tensor == t].mean() for t in range(4)]
    assert means == sorted(means, reverse=True)  # the roles' own order
    assert (prediction.se > 0.5 * prediction.kld)[~probed].all()


def test_without_any_probe_it_still_ranks_by_the_error():
    table, kld = world()
    prediction = fit(table, np.full(len(kld), np.nan), np.full(len(kld), np.nan))
    unbiased = np.flatnonzero((table.tensor == 0) & (table.bias2 < 1e-4))
    assert (np.diff(prediction.log[unbiased]) < 0).all()
    assert np.isfinite(prediction.kld).all()


def test_routers_make_the_curve_flatter():
    table, kld = world(seed=4)
    probed = np.tile(np.arange(TYPES), 24) % 3 == 0
    flat = only(kld**0.8, probed)
    assert fit(table, flat, 0.03 * flat).parameters["exponent"] < 0.9
    steep = only(kld, probed)
    assert fit(table, steep, 0.03 * steep).parameters["exponent"] > 0.93


def test_a_noisy_measurement_is_combined_with_the_prediction():
    table, truth = world(40, seed=9)
    random = np.random.default_rng(10)
    noise = np.where(np.arange(len(truth)) % 2, 0.6, 0.01)  # of the log
    kld = truth * np.exp(noise * random.standard_normal(len(truth)))
    prediction = fit(table, kld, noise * kld)
    combined = prediction.combined(kld, noise * kld)
    off = [np.abs(np.log(values / truth)) for values in (kld, combined)]
    assert off[1][noise > 0.1].mean() < 0.7 * off[0][noise > 0.1].mean()
    assert combined[noise < 0.1] == pytest.approx(kld[noise < 0.1], rel=0.02)
    between = np.sign(np.log(combined / kld)) == np.sign(prediction.log - np.log(kld))
    assert between.all() and (np.abs(np.log(combined / kld)) <= np.abs(prediction.log - np.log(kld))).all()


def test_further_noise_costs_what_the_curve_says():
    table, kld = world(24)
    every = 0.01 * kld
    more = np.where(table.tensor < 12, table.noise, 0.0)
    plain, noisier = fit(table, kld, every), fit(table, kld, every, more)
    assert (noisier.log == plain.log).all() and (noisier.more[table.tensor >= 12] == 0).all()
    assert (np.asarray(plain.more) == 0).all()
    flat = (table.tensor < 12) & (table.noise > 0.05)  # noise alone: twice as much costs twice as much
    assert noisier.more[flat] == pytest.approx(1.0, abs=0.1)
    biased = (table.tensor < 12) & (table.bias2 > 1e-4)
    assert noisier.more[biased].mean() < 0.5 and (noisier.more[biased] > 0).all()


def test_what_has_no_noise_or_no_log_is_left_alone():
    table, kld = world(2)
    se = 0.5 * kld
    se[0], se[1] = np.nan, 0.0  # one chunk; all chunks alike
    kld[2:5] = np.nan, 0.0, -1e-9
    combined = fit(table, kld, se).combined(kld, se)
    assert combined[:5] == pytest.approx(kld[:5], nan_ok=True)
    assert (combined[5:] != kld[5:]).all()


def test_cross_validation_gives_the_error_of_what_is_left_out():
    table, kld = world()
    probed = np.isin(np.tile(np.arange(TYPES), 24), [0, 1, 3, 6])
    error = cross_validated(table, only(kld, probed), 0.03 * kld)
    assert error is not None and error < 0.4
    assert cross_validated(table, only(kld, np.arange(len(kld)) < 9), kld) is None


def test_a_zero_a_negative_and_a_choice_without_error_do_no_harm():
    table, kld = world()
    known = kld.copy()
    known[:3] = [0.0, -1e-9, np.nan]
    table.noise[5] = table.bias2[5] = 0.0
    assert np.isfinite(fit(table, known, 0.03 * kld).kld).all()


# --- the order of probes -----------------------------------------------------


def test_first_comes_one_a_tensor_the_largest_first():
    table, _ = world(6)
    table.elements[table.tensor == 4] = 1e6
    every = np.ones(len(table.tensor), bool)
    first = order.first(table, every)
    assert list(table.tensor[first]) == [4, 0, 1, 2, 3, 5]
    assert set(first % TYPES) == {TYPES // 2}
    every[first[0]] = every[table.tensor == 5] = False
    again = order.first(table, every)
    assert list(table.tensor[again]) == [4, 0, 1, 2, 3] and again[0] != first[0]


def test_what_is_left_is_named_once_and_nothing_else():
    table, kld = world()
    known = only(kld, np.tile(np.arange(TYPES), 24) == 4)
    left = np.isnan(known)
    left[7] = False  # not to be probed
    prediction = fit(table, known, 0.03 * kld)
    following = order.following(table, prediction, known, left, 30)
    assert len(set(following)) == 30 and left[following].all()
    assert (following == order.following(table, prediction, known, left, 30)).all()
    assert sorted(order.following(table, prediction, known, left, 10**6)) == list(np.flatnonzero(left))


def test_what_no_price_would_take_comes_late():
    table, kld = world(12, seed=5)
    # of one tensor a type that is far worse than a smaller one: dominated, whatever a byte is worth
    worse = 4
    table.noise[worse] = 50.0
    known = only(kld, np.tile(np.arange(TYPES), 12) == 3)
    prediction = fit(table, known, 0.03 * kld)
    following = list(order.following(table, prediction, known, np.isnan(known), 10**6))
    assert following.index(worse) > len(following) // 2


def test_the_expected_gain_is_that_of_draws():
    random = np.random.default_rng(8)
    guess = predict.Prediction(np.log([0.1, 0.1, 0.2]), np.array([0.3, 0.3, 1.0]), {})
    turn, taken = np.array([0.08, 0.15, 0.01]), np.array([False, True, False])
    draws = np.exp(guess.log + np.sqrt(guess.variance) * random.standard_normal((400_000, 3)))
    gains = np.where(taken, np.maximum(draws - turn, 0), np.maximum(turn - draws, 0)).mean(axis=0)
    assert order.expected_gain(guess, turn, taken) == pytest.approx(gains, rel=0.05, abs=1e-6)
    never = order.expected_gain(guess, np.array([-0.1, np.inf, -1.0]), taken)
    assert never == pytest.approx(np.zeros(3), abs=1e-12)


def test_prices_span_the_slopes():
    table, kld = world(4)
    prices = order.prices(table, kld)
    assert (np.diff(prices) >= 0).all() and prices[0] > 0
    taken = [order.decisions(table, kld + price * table.bytes)[0] for price in (prices[0], prices[-1])]
    assert table.bytes[taken[0]].sum() > table.bytes[taken[1]].sum()
    assert all(flags.sum() == 4 for flags in taken)


def test_probing_in_this_order_decides_better_than_in_none():
    """With as many probes, the total sensitivity of what would be allocated is nearer to the best."""
    table, kld = world(40, seed=6)

    def lost(values: np.ndarray) -> float:
        prices = order.prices(table, kld)
        chosen = [order.decisions(table, values + p * table.bytes)[0] for p in prices]
        best = [order.decisions(table, kld + p * table.bytes)[0] for p in prices]
        cost = [(kld[c].sum() + p * table.bytes[c].sum()) for c, p in zip(chosen, prices, strict=True)]
        least = [(kld[b].sum() + p * table.bytes[b].sum()) for b, p in zip(best, prices, strict=True)]
        return float(np.mean(np.array(cost) / least) - 1)

    def after(known: np.ndarray) -> float:
        return lost(np.where(np.isfinite(known), kld, fit(table, known, 0.03 * kld).kld))

    known = only(kld, np.isin(np.arange(len(kld)), order.first(table, np.ones(len(kld), bool))))
    start = after(known)
    for _ in range(4):
        prediction = fit(table, known, 0.03 * kld)
        pick = order.following(table, prediction, known, np.isnan(known), 10)
        known[pick] = kld[pick]
    random = np.random.default_rng(7)
    others = []
    for _ in range(5):
        blind = only(kld, np.isin(np.arange(len(kld)), order.first(table, np.ones(len(kld), bool))))
        pick = random.permutation(np.flatnonzero(np.isnan(blind)))[:40]
        blind[pick] = kld[pick]
        others.append(after(blind))
    assert after(known) < start
    assert after(known) < np.mean(others)


@pytest.mark.parametrize("count", [1, 3])
def test_a_single_choice_a_tensor_needs_no_decision(count):
    table = Table(
        np.arange(count),
        ["ffn_up"] * count,
        np.full(count, 9.0),
        np.full(count, 9.0),
        np.full(count, 0.1),
        np.zeros(count),
    )
    taken, alternative = order.decisions(table, np.ones(count))
    assert taken.all() and np.isinf(alternative).all()
    known = np.full(count, np.nan)
    prediction = fit(table, known, known)
    assert len(order.following(table, prediction, known, np.isnan(known), 9)) == count
