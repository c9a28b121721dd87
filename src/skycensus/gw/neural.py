r"""Detection probability or sensitive volume as a neural network, in GWKokab's HDF5 layout.

A network is a plain multilayer perceptron with rectified linear units,

    $x_{i+1} = \max(0, W_i x_i + b_i)$, $i = 0 \dots d-1$, output $W_d x_d + b_d$,

of parameters taken by name. The file holds the datasets `names`, `in_size`, `out_size`,
`width_size`, `depth` (d, the number of hidden layers), for i = 0 … d the groups `layer_i` with
`weight_i` (outputs × inputs) and `bias_i`, and the attribute `is_log`: whether the output is
a natural logarithm (of VT in Gpc³, or of the detection probability).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..errors import InputError
from .coordinates import Theta, is_binary


class Network(eqx.Module):
    """A multilayer perceptron of named parameters.

    Attributes:
        names: the parameters, in the order of the first layer's inputs.
        weights, biases: one each per layer, shapes (outputs, inputs) and (outputs,).
        is_log: whether the output is a natural logarithm.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    names: tuple[str, ...] = eqx.field(static=True)
    is_log: bool = eqx.field(static=True)

    def __call__(self, theta: Mapping[str, Any]) -> Array:
        """Return the output as it is; elementwise in theta, an axis more for several outputs."""
        missing = [name for name in self.names if name not in theta]
        if missing:
            raise InputError(
                f"the network needs {', '.join(self.names)}; {', '.join(missing)} not in "
                f"{', '.join(theta) or 'nothing'}. Derive them, or train a network in these."
            )
        columns = [jnp.asarray(theta[name]) for name in self.names]
        dtype = jnp.result_type(float, self.weights[0].dtype, *columns)
        x = jnp.stack(jnp.broadcast_arrays(*columns), axis=-1).astype(dtype)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight.T.astype(dtype) + bias.astype(dtype)
            if i < last:
                x = jax.nn.relu(x)
        return x[..., 0] if x.shape[-1] == 1 else x

    def log_value(self, theta: Mapping[str, Any]) -> Array:
        r"""Return the natural logarithm of VT or of the detection probability.

        A network without `is_log` may be negative where it should be zero: $-\infty$ there.
        """
        value = self(theta)
        if self.is_log:
            return value
        zero = value <= 0.0
        return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, value)))


def log_selection(network: Network, *, probability: bool) -> Callable[[Theta], Array]:
    r"""Return $\ln V(\theta)$ or $\ln p_\mathrm{det}(\theta)$ of a network, for binaries.

    $-\infty$ at $m_2 > m_1$, where densities may have weight and no network was trained. A
    probability may overshoot one by the network's error and is cut there.
    """

    def value(theta: Theta) -> Array:
        log_value = network.log_value(theta)
        if probability:
            log_value = jnp.minimum(log_value, 0.0)
        return jnp.where(is_binary(theta), log_value, -jnp.inf)

    return value


def read_network(path: str | Path, *, is_log: bool | None = None) -> Network:
    """Read a network.

    Args:
        path: an HDF5 file in the layout of the module.
        is_log: overrules the file's attribute, or stands in for it in files without.
    """
    import h5py

    path = Path(path)
    if not path.exists():
        raise InputError(f"network {path}: there is no such file.")
    try:
        with h5py.File(path, "r") as file:
            sizes = {
                name: int(_dataset(path, file, name))
                for name in ("in_size", "out_size", "width_size", "depth")
            }
            names = tuple(
                x.decode() if isinstance(x, bytes) else str(x)
                for x in np.atleast_1d(_dataset(path, file, "names"))
            )
            layers = [
                (
                    _dataset(path, file, f"layer_{i}/weight_{i}"),
                    _dataset(path, file, f"layer_{i}/bias_{i}"),
                )
                for i in range(sizes["depth"] + 1)
            ]
            surplus = f"layer_{len(layers)}"
            if surplus in file:
                raise InputError(
                    f"network {path}: depth = {sizes['depth']} means layers 0 to "
                    f"{sizes['depth']}, but there is also '{surplus}'; correct one of them."
                )
            stored = file.attrs.get("is_log")
    except InputError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"network {path}: not a readable HDF5 file ({error}); give one in GWKokab's layout, "
            "as write_network makes it."
        ) from error
    _check_layers(path, names, sizes, layers)
    if is_log is None:
        if stored is None:
            raise InputError(
                f"network {path}: no attribute 'is_log', so whether it gives a quantity or its "
                "natural logarithm is unknown; pass is_log=True or is_log=False."
            )
        is_log = bool(stored)
    weights = tuple(jnp.asarray(weight) for weight, _ in layers)
    biases = tuple(jnp.asarray(bias) for _, bias in layers)
    return Network(weights, biases, names, is_log)


def _dataset(path: Path, file: Any, name: str) -> Any:
    import h5py

    if name not in file or not isinstance(file[name], h5py.Dataset):
        raise InputError(
            f"network {path}: no dataset '{name}'; expected names, in_size, out_size, width_size, "
            "depth and layer_i/weight_i, layer_i/bias_i. It holds "
            f"{', '.join(file) or 'nothing'}."
        )
    return file[name][()]


def _check_layers(
    path: Path, names: Sequence[str], sizes: Mapping[str, int], layers: Sequence[Any]
) -> None:
    if len(names) != sizes["in_size"]:
        raise InputError(
            f"network {path}: {len(names)} names ({', '.join(names)}) but in_size = "
            f"{sizes['in_size']}; there must be one name per input."
        )
    depth = sizes["depth"]
    widths = [sizes["in_size"], *[sizes["width_size"]] * depth, sizes["out_size"]]
    for i, (weight, bias) in enumerate(layers):
        expected = (widths[i + 1], widths[i])
        if weight.shape != expected or bias.shape != expected[:1]:
            raise InputError(
                f"network {path}: layer_{i} has weight {weight.shape} and bias {bias.shape}, "
                f"expected {expected} (outputs × inputs) and {expected[:1]} from the sizes."
            )
        if not (np.all(np.isfinite(weight)) and np.all(np.isfinite(bias))):
            raise InputError(f"network {path}: layer_{i} is not finite; train the network again.")


def write_network(network: Network, path: str | Path) -> None:
    """Write a network to a new or existing HDF5 file, in the layout of the module."""
    import h5py

    hidden = len(network.weights) - 1
    widths = {len(bias) for bias in network.biases[:-1]}
    if len(widths) > 1:
        raise InputError(
            f"network: hidden layers of widths {sorted(widths)}, but the layout has one width."
        )
    try:
        with h5py.File(path, "w") as file:
            file.attrs["is_log"] = network.is_log
            file["names"] = np.array(network.names, dtype="S")
            file["in_size"] = len(network.names)
            file["out_size"] = len(network.biases[-1])
            file["width_size"] = widths.pop() if widths else 0
            file["depth"] = hidden
            for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
                file[f"layer_{i}/weight_{i}"] = np.asarray(weight)
                file[f"layer_{i}/bias_{i}"] = np.asarray(bias)
    except OSError as error:
        raise InputError(f"network {path}: cannot be written ({error}).") from error


class Settings(NamedTuple):
    """How `train_network` goes about it.

    Attributes:
        width, depth: of the hidden layers.
        learning_rate: the largest step of Adam, which falls along a cosine to zero over
            `max_epochs`.
        batch_size, max_epochs: of the optimisation.
        patience: epochs without a smaller error on the validation draws that end it early.
        validation_fraction: of the draws, kept back to choose the best state.
    """

    width: int = 64
    depth: int = 3
    learning_rate: float = 3e-3
    batch_size: int = 512
    max_epochs: int = 300
    patience: int = 40
    validation_fraction: float = 0.1


class Training(NamedTuple):
    """What `train_network` returns.

    `rms` and `largest_error` are those of the returned network on the validation draws, which it
    was not fitted to, in the target's units; `rms_by_epoch` has one entry per epoch run.
    """

    network: Network
    rms: float
    largest_error: float
    rms_by_epoch: np.ndarray


def train_network(
    key: Array,
    theta: Mapping[str, Any],
    target: Any,
    *,
    is_log: bool,
    settings: Settings | None = None,
) -> Training:
    """Fit a network to values of a function of theta by least squares.

    Inputs and target are standardised, and the standardisation is folded into the first and the
    last layer, so that the network is a plain one. The state with the smallest error on the
    validation draws is returned, not the last.

    Args:
        key: a PRNG key.
        theta: parameter name -> values, shape (n,); their order is that of the network's inputs.
        target: shape (n,): what the network shall give, for instance ln VT, detection
            probabilities, or for injections one where found and zero where not.
        is_log: whether the target is a natural logarithm.
        settings: of network and optimisation.
    """
    settings = settings or Settings()
    names = tuple(theta)
    x, y = _table(names, theta, target)
    key_split, key_init, key_train = jax.random.split(key, 3)
    order = np.asarray(jax.random.permutation(key_split, len(y)))
    num_held = round(settings.validation_fraction * len(y))
    if not 0 < num_held < len(y):
        raise InputError(
            f"validation_fraction={settings.validation_fraction} of {len(y)} draws leaves "
            f"{num_held} to validate; give a fraction in (0, 1) and more draws."
        )
    held, fitted = order[:num_held], order[num_held:]
    centre, scale = x[fitted].mean(0), _spread(x[fitted])
    y_centre, y_scale = y[fitted].mean(), _spread(y[fitted])
    inputs, outputs = (x - centre) / scale, (y - y_centre) / y_scale
    mlp = eqx.nn.MLP(len(names), "scalar", settings.width, settings.depth, key=key_init)
    best, history = _optimise(
        key_train,
        mlp,
        (jnp.asarray(inputs[fitted]), jnp.asarray(outputs[fitted])),
        (jnp.asarray(inputs[held]), jnp.asarray(outputs[held])),
        settings,
    )
    network = _fold(best, names, is_log, (centre, scale), (y_centre, y_scale))
    errors = np.asarray(network({n: c[held] for n, c in zip(names, x.T, strict=True)})) - y[held]
    return Training(
        network,
        float(np.sqrt(np.mean(errors**2))),
        float(np.max(np.abs(errors))),
        y_scale * np.array(history),
    )


def _optimise(
    key: Array,
    mlp: Any,
    fitted: tuple[Array, Array],
    held: tuple[Array, Array],
    settings: Settings,
) -> tuple[Any, list[float]]:
    """The state with the smallest error on the inputs and outputs held back, and all errors."""
    batch = min(settings.batch_size, len(fitted[1]))
    steps = len(fitted[1]) // batch * settings.max_epochs
    optimiser = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, steps))
    epoch = _epoch(optimiser, *fitted, batch)
    validate = eqx.filter_jit(lambda model, x, y: jnp.sqrt(jnp.mean((jax.vmap(model)(x) - y) ** 2)))
    state = optimiser.init(eqx.filter(mlp, eqx.is_inexact_array))
    best, best_rms, since = mlp, np.inf, 0
    history: list[float] = []
    for key_epoch in jax.random.split(key, settings.max_epochs):
        mlp, state = epoch(mlp, state, key_epoch)
        rms = float(validate(mlp, *held))
        history.append(rms)
        since += 1
        if rms < best_rms:
            best, best_rms, since = mlp, rms, 0
        if since >= settings.patience:
            break
    if not np.isfinite(best_rms):
        raise InputError(
            f"training diverged: no finite error in {len(history)} epochs; lower learning_rate "
            f"(now {settings.learning_rate})."
        )
    return best, history


def _table(
    names: Sequence[str], theta: Mapping[str, Any], target: Any
) -> tuple[np.ndarray, np.ndarray]:
    y = np.asarray(target, float)
    columns = [np.asarray(theta[name], float) for name in names]
    for name, column in zip(("target", *names), (y, *columns), strict=True):
        if column.shape != (y.size,):
            raise InputError(
                f"training: '{name}' has shape {column.shape}, expected ({y.size},) as the target."
            )
        bad = int(np.sum(~np.isfinite(column)))
        if bad:
            raise InputError(
                f"training: {bad} of {y.size} values of '{name}' are not finite; drop these rows "
                "(a logarithm of zero: train on the quantity itself, is_log=False)."
            )
    if not names:
        raise InputError("training: theta is empty; give the parameters by name.")
    return np.stack(columns, axis=1), y


def _spread(x: np.ndarray) -> Any:
    """Return the standard deviation along the first axis, one for a constant."""
    spread = np.std(x, axis=0)
    return np.where(spread > 0.0, spread, 1.0)


def _epoch(optimiser: optax.GradientTransformation, x: Array, y: Array, batch: int) -> Any:
    """Return the function that runs once through the draws in a new order."""

    @eqx.filter_value_and_grad
    def loss(model: Any, x: Array, y: Array) -> Array:
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    @eqx.filter_jit
    def run(mlp: Any, state: Any, key: Array) -> tuple[Any, Any]:
        parameters, rest = eqx.partition(mlp, eqx.is_inexact_array)
        steps = len(y) // batch
        order = jax.random.permutation(key, len(y))[: steps * batch].reshape(steps, batch)

        def step(carry: Any, rows: Array) -> tuple[Any, None]:
            parameters, state = carry
            _, gradient = loss(eqx.combine(parameters, rest), x[rows], y[rows])
            gradient = eqx.filter(gradient, eqx.is_inexact_array)
            updates, state = optimiser.update(gradient, state, parameters)
            return (eqx.apply_updates(parameters, updates), state), None

        (parameters, state), _ = jax.lax.scan(step, (parameters, state), order)
        return eqx.combine(parameters, rest), state

    return run


def _fold(
    mlp: Any,
    names: tuple[str, ...],
    is_log: bool,
    inputs: tuple[np.ndarray, np.ndarray],
    output: tuple[Any, Any],
) -> Network:
    """Return the network of raw inputs and outputs that equals the one of standardised ones.

    `inputs` and `output` hold their centre and scale.
    """
    (centre, scale), (y_centre, y_scale) = inputs, output
    weights = [np.asarray(layer.weight, float) for layer in mlp.layers]
    biases = [np.atleast_1d(np.asarray(layer.bias, float)) for layer in mlp.layers]
    weights[0] = weights[0] / scale
    biases[0] = biases[0] - weights[0] @ centre
    weights[-1] = weights[-1] * y_scale
    biases[-1] = biases[-1] * y_scale + y_centre
    return Network(
        tuple(jnp.asarray(w) for w in weights), tuple(jnp.asarray(b) for b in biases), names, is_log
    )
