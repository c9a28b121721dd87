import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skycensus.errors import InputError
from skycensus.gw.neural import (
    Network,
    Settings,
    log_selection,
    read_network,
    train_network,
    write_network,
)


def chirp_mass(m1, m2):
    return (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2


@pytest.fixture
def network():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(4, 2), (4, 4), (1, 4)]
    weights = tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    biases = tuple(0.1 * jnp.arange(s[0], dtype=float) for s in shapes)
    return Network(weights, biases, ("mass_1_source", "mass_2_source"), True)


def by_hand(network, x):
    for i, (w, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        x = np.asarray(w) @ x + np.asarray(b)
        if i < len(network.weights) - 1:
            x = np.maximum(x, 0.0)
    return x


def test_is_the_perceptron_of_the_formula(network):
    theta = {"mass_2_source": 2.0, "other": 5.0, "mass_1_source": 3.0}
    assert float(network(theta)) == pytest.approx(by_hand(network, np.array([3.0, 2.0]))[0])
    grid = {"mass_1_source": jnp.ones((5, 3)), "mass_2_source": jnp.ones(3)}
    assert network(grid).shape == (5, 3)
    assert jax.jit(jax.vmap(network))(grid | {"mass_2_source": jnp.ones((5, 3))}).shape == (5, 3)


def test_round_trip(network, tmp_path):
    path = tmp_path / "network.hdf5"
    write_network(network, path)
    read = read_network(path)
    assert read.names == network.names and read.is_log is True
    theta = {"mass_1_source": jnp.arange(5.0), "mass_2_source": jnp.arange(5.0)}
    np.testing.assert_array_equal(read(theta), network(theta))
    with h5py.File(path) as file:
        assert set(file) == {
            *("names", "in_size", "out_size", "width_size", "depth"),
            *("layer_0", "layer_1", "layer_2"),
        }
        assert file["layer_1/weight_1"].shape == (4, 4) and int(file["depth"][()]) == 2


def test_logarithm_of_a_probability():
    line = Network((jnp.array([[1.0]]),), (jnp.zeros(1),), ("x",), False)
    value = line.log_value({"x": jnp.array([-1.0, 0.0, 0.5])})
    np.testing.assert_allclose(value, [-np.inf, -np.inf, np.log(0.5)])
    slope = jax.vmap(jax.grad(lambda x: line.log_value({"x": x})))(jnp.array([-1.0, 0.5]))
    np.testing.assert_allclose(slope, [0.0, 2.0])


def test_reference_file(shared, require_path):
    network = read_network(require_path(shared / "reference" / "gwkokab" / "neural_vt.hdf5"))
    assert network.names == ("mass_1_source", "mass_2_source") and network.is_log
    rng = np.random.default_rng(0)
    m1, m2 = np.sort(rng.uniform(10.0, 80.0, (2, 500)), axis=0)[::-1]
    log_vt = network.log_value({"mass_1_source": m1, "mass_2_source": m2})
    exact = np.log(8.5e-4 * chirp_mass(m1, m2) ** 2.2)
    assert np.sqrt(np.mean((np.asarray(log_vt) - exact) ** 2)) < 0.05


def test_training_learns_a_power_law(tmp_path):
    rng = np.random.default_rng(0)
    m1, m2 = np.sort(rng.uniform(5.0, 100.0, (2, 3000)), axis=0)[::-1]
    target = np.log(8.5e-4 * chirp_mass(m1, m2) ** 2.2)
    theta = {"mass_1_source": m1, "mass_2_source": m2}
    training = train_network(
        jax.random.key(1),
        theta,
        target,
        is_log=True,
        settings=Settings(width=32, depth=2, batch_size=128, max_epochs=60),
    )
    assert training.rms < 0.06
    assert training.rms == pytest.approx(np.min(training.rms_by_epoch), rel=1e-6)
    assert training.largest_error >= training.rms
    # The stored network takes raw inputs: no standardisation travels beside it.
    write_network(training.network, tmp_path / "n.hdf5")
    read = read_network(tmp_path / "n.hdf5")
    assert np.sqrt(np.mean((np.asarray(read(theta)) - target) ** 2)) < 0.06


def test_training_stops_early_with_its_best_state():
    rng = np.random.default_rng(1)
    x = rng.uniform(size=400)
    noise = rng.normal(size=400)
    settings = Settings(width=16, patience=5, max_epochs=200)
    training = train_network(jax.random.key(0), {"x": x}, noise, is_log=False, settings=settings)
    assert len(training.rms_by_epoch) < 200
    assert training.rms == pytest.approx(np.min(training.rms_by_epoch), rel=1e-6)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: f.pop("depth"), "no dataset 'depth'"),
        (lambda f: f.pop("layer_1"), "no dataset 'layer_1/weight_1'"),
        (lambda f: f["depth"].write_direct(np.array(1)), "also 'layer_2'"),
        (lambda f: f["in_size"].write_direct(np.array(3)), "2 names .* in_size = 3"),
        (lambda f: f["width_size"].write_direct(np.array(5)), "layer_0 has weight"),
        (lambda f: f.attrs.pop("is_log"), "no attribute 'is_log'"),
        (lambda f: f["layer_0/bias_0"].write_direct(np.full(4, np.nan)), "not finite"),
    ],
)
def test_wrong_layouts_are_named(network, tmp_path, damage, message):
    path = tmp_path / "network.hdf5"
    write_network(network, path)
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InputError, match=message):
        read_network(path)


def test_files_that_are_none(network, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_network(tmp_path / "absent.hdf5")
    text = tmp_path / "text.hdf5"
    text.write_text("not a network")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        read_network(text)
    with pytest.raises(InputError, match="cannot be written"):
        write_network(network, tmp_path / "no" / "such" / "folder.hdf5")


def test_is_log_can_be_given(network, tmp_path):
    path = tmp_path / "network.hdf5"
    write_network(network, path)
    with h5py.File(path, "r+") as file:
        del file.attrs["is_log"]
    assert read_network(path, is_log=False).is_log is False


def test_missing_input_is_named(network):
    with pytest.raises(InputError, match="mass_2_source not in mass_1_source"):
        network({"mass_1_source": 1.0})


@pytest.mark.parametrize(
    "theta, target, options, message",
    [
        ({"x": np.ones(3)}, np.ones(4), {}, "'x' has shape"),
        ({"x": np.ones(4)}, np.array([0.0, 1.0, -np.inf, 0.0]), {}, "1 of 4 values of 'target'"),
        ({"x": np.ones(4)}, np.ones(4), {"validation_fraction": 0.0}, "leaves 0 to validate"),
        ({}, np.ones(4), {}, "theta is empty"),
    ],
)
def test_training_errors(theta, target, options, message):
    with pytest.raises(InputError, match=message):
        settings = Settings(**options)
        train_network(jax.random.key(0), theta, target, is_log=True, settings=settings)


@pytest.mark.slow
def test_a_diverged_training_says_so():
    x = np.linspace(0.0, 1.0, 40)
    settings = Settings(width=4, depth=1, learning_rate=np.inf, max_epochs=2)
    with pytest.raises(InputError, match="no finite error in 2 epochs; lower learning_rate"):
        train_network(jax.random.key(0), {"x": x}, x, is_log=False, settings=settings)


@pytest.mark.slow
@pytest.mark.parametrize("second", ["mass_2_source", "mass_ratio"])
def test_selection_is_of_ordered_masses_and_a_probability_at_most_one(second):
    """The network gives the logarithm of the first mass over ten, whatever the second."""
    weights = (jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.1, 0.0]]))
    biases = (jnp.zeros(2), jnp.array([-1.0]))
    network = Network(weights, biases, names=("mass_1_source", second), is_log=True)
    swapped = 2.0 if second == "mass_ratio" else 6.0
    theta = {"mass_1_source": jnp.array([5.0, 5.0, 20.0]), second: jnp.array([0.5, swapped, 0.5])}
    volume = log_selection(network, probability=False)(theta)
    np.testing.assert_allclose(volume, [-0.5, -np.inf, 1.0], atol=1e-6)
    capped = log_selection(network, probability=True)(theta)
    np.testing.assert_allclose(capped, [-0.5, -np.inf, 0.0], atol=1e-6)
