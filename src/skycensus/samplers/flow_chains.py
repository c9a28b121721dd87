r"""flowMC's chains of a target in whitened coordinates: the density, kernels, flow and buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint import pack, unpack
from ..errors import InputError
from ..target import Target
from . import at_point, batch_size, in_batches
from .pilot import Pilot

if TYPE_CHECKING:
    from .flow_mcmc import FlowMCMC

# Beyond this many standard deviations of the pilot a log density that is not a number comes from a
# trajectory that ran away, not from the model.
FAR = 30.0

# The buffers of flowMC, with the shape of an entry.
_BUFFERS = ("positions", "log_density", "acceptance")


class Chains(NamedTuple):
    """What flowMC works with: named resources, and the strategies that change them."""

    resources: dict[str, Any]
    local_steps: Any
    training: Any
    global_steps: Any

    def clear(self, num_chains: int, length: int, dim: int) -> None:
        """Empty buffers for a phase of `length` draws a chain."""
        from flowMC.resource.buffers import Buffer

        for name, shape in zip(_BUFFERS, ((dim,), (), ()), strict=True):
            self.resources[name] = Buffer(name, (num_chains, length, *shape), 1)
        self.local_steps.set_current_position(0)

    def arrays(self) -> dict[str, Any]:
        """All that loops change, as arrays by name."""
        buffers = {name: self.resources[name].data for name in _BUFFERS}
        learnt = {f"learnt.{name}": x for name, x in pack(self._learnt).items()}
        return buffers | learnt | {"used": np.array(self.local_steps.current_position)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go back to where `arrays` was asked for; the buffers must be those of its phase.

        They may be longer than they were then, or shorter: what does not fit is left out.
        """
        head = "learnt."
        learnt = {n.removeprefix(head): x for n, x in arrays.items() if n.startswith(head)}
        flow, state, step = unpack(learnt, self._learnt)
        resources = self.resources
        resources["flow"] = eqx.combine(flow, resources["flow"])
        resources["optimizer"].optim_state = eqx.combine(state, resources["optimizer"].optim_state)
        resources["local_kernel"] = eqx.tree_at(
            lambda kernel: kernel.step_size, resources["local_kernel"], step
        )
        self.propose()
        for name in _BUFFERS:
            buffer = resources[name]
            fits = arrays[name][:, : buffer.data.shape[1]]
            buffer.data = buffer.data.at[:, : fits.shape[1]].set(jnp.asarray(fits))
        self.local_steps.set_current_position(min(int(arrays["used"]), buffer.data.shape[1]))

    @property
    def _learnt(self) -> tuple[Any, Any, Any]:
        resources = self.resources
        parts = (resources["flow"], resources["optimizer"].optim_state)
        flow, state = (eqx.filter(part, eqx.is_array) for part in parts)
        return flow, state, resources["local_kernel"].step_size

    def propose(self) -> None:
        """Let the global steps propose draws of the flow as it is."""
        self.resources["global_kernel"] = eqx.tree_at(
            lambda kernel: kernel.model, self.resources["global_kernel"], self.resources["flow"]
        )

    def drawn(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions, log densities and acceptances so far, (chain, draw, ...)."""
        used = self.local_steps.current_position
        arrays = (np.asarray(self.resources[name].data, float)[:, :used] for name in _BUFFERS)
        positions, log_density, acceptance = arrays
        return positions, log_density, acceptance


def whitened(
    target: Target, force: Target, pilot: Pilot
) -> tuple[Callable[[Any, Any], Any], dict[str, Any]]:
    r"""The log density of $y$ (up to a constant) as flowMC wants it, and the data it takes.

    Its gradient is that of `force`: a Metropolis step is exact with any field of directions that
    depends on the point alone. A value that is no number becomes $+\infty$, so that a chain that
    meets it stays there and the run can name the point; a Metropolis step would refuse it silently.
    """
    arrays, statics = zip(*(_split(t.data) for t in (target, force)), strict=True)
    data = {
        "center": jnp.asarray(pilot.center),
        "scale": jnp.asarray(pilot.scale),
        "target": arrays[0],
        "force": arrays[1] if force is not target else None,
    }

    def value_of(y: Any, data: Any) -> Any:
        x = data["center"] + data["scale"] @ y
        return target.log_density(x, eqx.combine(data["target"], statics[0]))

    def force_of(y: Any, data: Any) -> Any:
        if force is target:
            return value_of(y, data)
        x = data["center"] + data["scale"] @ y
        return force.log_density(x, eqx.combine(data["force"], statics[1]))

    value_at = in_batches(value_of, batch_size(target))
    slope_at = in_batches(jax.value_and_grad(force_of), batch_size(force, gradient=True))

    def guarded(value: Any, y: Any) -> Any:
        broken = jnp.isnan(value) | (value == jnp.inf)
        trap = jnp.where(jnp.all(jnp.abs(y) < FAR), jnp.inf, -jnp.inf)
        return jnp.where(broken, trap, value)

    @jax.custom_vjp
    def log_density(y: Any, data: Any) -> Any:
        return guarded(value_at(y, data), y)

    def forward(y: Any, data: Any) -> tuple[Any, Any]:
        height, slope = slope_at(y, data)
        value = height if force is target else value_at(y, data)
        # Where there is no density there is no slope either, and a trajectory coasts.
        return guarded(value, y), jnp.where(jnp.isfinite(height), slope, 0.0)

    log_density.defvjp(forward, lambda slope, cotangent: (cotangent * slope, None))
    return log_density, data


def _split(data: Any) -> tuple[Any, Any]:
    """The arrays of `data`, which flowMC carries through its loops, and all the rest."""
    is_array = lambda leaf: isinstance(leaf, (jax.Array, np.ndarray))  # noqa: E731
    arrays, rest = eqx.partition(data, is_array)
    return jax.tree.map(jnp.asarray, arrays), rest


def require_gradients(
    target: Target, log_density: Any, data: Any, y: Any, start: np.ndarray
) -> None:
    """Raise `InputError` naming the first start whose gradient is not finite."""
    gradient = jax.jit(lambda y, data: jax.lax.map(lambda one: jax.grad(log_density)(one, data), y))
    broken = np.flatnonzero(~np.isfinite(np.asarray(gradient(y, data))).all(axis=1))
    if broken.size:
        point = at_point(target, start[broken[0]])
        raise InputError(
            f"the gradient of the log density is not finite at {point} ({broken.size} of {len(y)} "
            "starts), though its value is: mend the model there, or use "
            "local_sampler='random_walk', which needs no gradient."
        )


def local_kernel(settings: FlowMCMC, dim: int) -> Any:
    """flowMC's kernel of the local steps."""
    from flowMC.resource.kernel.Gaussian_random_walk import GaussianRandomWalk
    from flowMC.resource.kernel.HMC import HMC
    from flowMC.resource.kernel.MALA import MALA

    step = settings.first_step(dim)
    if settings.local_sampler == "mala":
        return MALA(step_size=jnp.full(dim, step))
    if settings.local_sampler == "random_walk":
        return GaussianRandomWalk(step_size=jnp.full(dim, step))
    mass = np.asarray(settings.mass_matrix, float)
    if mass.ndim and mass.shape != (dim,):
        raise InputError(
            f"sampler: mass_matrix has {mass.size} numbers for {dim} parameters; give one number, "
            "or one for each parameter."
        )
    # An array, because a step size that is a Python number would compile anew each time it changes.
    return HMC(
        condition_matrix=jnp.broadcast_to(jnp.asarray(mass), (dim,)),
        step_size=jnp.asarray(step),  # type: ignore[arg-type]
        n_leapfrog=settings.num_leapfrog,
    )


def build(settings: FlowMCMC, key: Any, log_density: Any, kernel: Any, dim: int) -> Chains:
    """flowMC's kernels, flow and strategies for these settings."""
    from flowMC.resource.kernel.NF_proposal import NFProposal
    from flowMC.resource.logPDF import LogPDF
    from flowMC.resource.optimizer import Optimizer
    from flowMC.resource.states import State
    from flowMC.strategy.take_steps import TakeGroupSteps, TakeSerialSteps
    from flowMC.strategy.train_model import TrainModel

    flow = _flow(settings, key, dim)
    resources: dict[str, Any] = {
        "target": LogPDF(log_density, n_dims=dim),
        "local_kernel": kernel,
        "global_kernel": NFProposal(flow, n_NFproposal_batch_size=settings.proposal_batch_size),
        "flow": flow,
        "optimizer": Optimizer(model=flow, learning_rate=settings.learning_rate),
        # flowMC looks up the names of the buffers in a state.
        "state": State({name: name for name in _BUFFERS}, name="state"),
    }

    def steps(strategy: Any, kernel_name: str, num: int, thinning: int) -> Any:
        return strategy(
            "target",
            kernel_name,
            "state",
            list(_BUFFERS),
            # Whole windows of thinning, because flowMC's buffers have room for no more.
            num // thinning * thinning,
            thinning=thinning,
            chain_batch_size=settings.chain_batch_size,
        )

    training = TrainModel(
        "flow",
        "positions",
        "optimizer",
        n_epochs=settings.num_epochs,
        batch_size=settings.batch_size,
        n_max_examples=settings.max_examples,
        history_window=settings.history_window,
    )
    local, thin_local = settings.num_local_steps, settings.local_thinning
    wide, thin_wide = settings.num_global_steps, settings.global_thinning
    return Chains(
        resources,
        local_steps=steps(TakeSerialSteps, "local_kernel", local, thin_local),
        training=training,
        global_steps=steps(TakeGroupSteps, "global_kernel", wide, thin_wide),
    )


def _flow(settings: FlowMCMC, key: Any, dim: int) -> Any:
    from flowMC.resource.model.nf_model.rqSpline import MaskedCouplingRQSpline

    low, high = settings.spline_range
    flow = MaskedCouplingRQSpline(
        dim,
        settings.num_layers,
        list(settings.hidden_units),
        settings.num_bins,
        key,
        spline_range=(float(low), float(high)),
    )
    # Some parameters start weakly typed and do not stay so, and all would compile twice.
    return jax.tree.map(lambda a: a.astype(a.dtype) if eqx.is_inexact_array(a) else a, flow)
