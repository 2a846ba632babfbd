"""How finely the weights vary over depth: refined without changing them, or projected.

Weights over depth are theta(t) = sum_k phi_k(t) w_k; `DepthConfig` names the basis phi, and says
how many w_k there are. Both functions are linear maps of the stacked w, one for all parameters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odeformer.errors import check_kind
from odeformer.models.checks import (
    check_divides,
    check_fit,
    check_halves,
    check_same_layers,
)
from odeformer.models.registry import MODELS, ModelConfig, example_inputs, make_model
from odeformer.transformer.bases import functions
from odeformer.transformer.checks import check_mapping
from odeformer.transformer.config import DepthConfig
from odeformer.transformer.lora_checks import check_merged
from odeformer.transformer.sharding import GROUPS


def refine(variables: Any, config: ModelConfig) -> tuple[Any, ModelConfig]:
    """Gives a model's weights more resolution over depth, without changing theta(t).

        constant   K becomes 2 K, share / 2: each set of weights duplicated
        hat        K becomes 2 K - 1: a node in the middle of each element
        legendre   K becomes 2 K: zeros appended
        fourier    K becomes 2 K + 1: zeros appended

    The fixed steps stay the same, too: under `constant` and `hat` there are twice as many groups,
    each with half as many steps.

    Args:
      variables: the model's variables.
      config: the model's config.

    Returns:
      (variables, config) of a model that computes the same function.

    Raises:
      ValueError: share 1 or an odd share; an odd number of steps per group; variables that are not
        the config's.

    Source: Queiruga et al. 2021, arXiv 2106.10820.

    Examples:
      >>> import jax, odeformer
      >>> config = odeformer.presets.vit("digits", depth={"layers": 4, "share": 4, "solver": "rk4"})
      >>> images = jax.numpy.zeros((2, 8, 8, 1))
      >>> variables = odeformer.ViT(config).init(jax.random.key(0), images)
      >>> variables, config = refine(variables, config)
      >>> config.depth.groups, odeformer.ViT(config).apply(variables, images).shape
      (2, (2, 10))
    """
    check_kind("refine", config, *MODELS)
    check_merged(variables)
    depth = refined_depth(config.depth)
    return _mapped(variables, config, refinement(config.depth), depth)


def project(
    variables: Any, config: ModelConfig, depth: DepthConfig | Mapping[str, Any]
) -> tuple[Any, ModelConfig]:
    """Gives a model the nearest weights over depth in another basis, or of another size.

        min over w' of the integral over [0, L] of |theta'(t) - theta(t)|^2

    Args:
      variables: the model's variables.
      config: the model's config.
      depth: the depth of the result, with as many layers; or a mapping of the fields that change,
        such as {'coefficients': 8}. If a mapping leaves out `steps`, their total stays the same.

    Returns:
      (variables, config).

    Raises:
      ValueError: another number of layers; a field that does not exist, or a value that is not
        accepted; steps that the groups do not divide; variables that are not the config's.

    Examples:
      >>> import jax, odeformer
      >>> config = odeformer.presets.vit("digits", depth={"layers": 4})
      >>> variables = odeformer.ViT(config).init(jax.random.key(0), jax.numpy.zeros((2, 8, 8, 1)))
      >>> line = {"basis": "legendre", "coefficients": 2}
      >>> variables, config = project(variables, config, line)
      >>> variables["params"]["depth"]["groups"]["mlp_layer"]["up"]["kernel"].shape
      (2, 64, 256)
    """
    check_kind("project", config, *MODELS)
    check_merged(variables)
    depth = projected_depth(config.depth, depth)
    return _mapped(variables, config, projection(config.depth, depth), depth)


def refined_depth(depth: DepthConfig) -> DepthConfig:
    """Returns the depth after `refine`; raises ValueError where it cannot be refined."""
    if depth.basis == "legendre":
        return dataclasses.replace(depth, coefficients=2 * depth.sets)
    if depth.basis == "fourier":
        return dataclasses.replace(depth, coefficients=2 * depth.sets + 1)

    check_halves(depth.basis, depth.share, depth.fixed_steps)
    steps = None if depth.steps is None else depth.steps // 2
    if depth.basis == "hat":
        return dataclasses.replace(depth, coefficients=2 * depth.sets - 1, steps=steps)
    return dataclasses.replace(depth, share=depth.share // 2, steps=steps)


def projected_depth(depth: DepthConfig, changes: DepthConfig | Mapping[str, Any]) -> DepthConfig:
    """Returns the depth after `project`; raises ValueError where it is not accepted."""
    if not isinstance(changes, DepthConfig):
        names = [field.name for field in dataclasses.fields(DepthConfig)]
        check_mapping("depth", changes, "DepthConfig", names)
        check_same_layers(depth.layers, changes.get("layers", depth.layers))
        changes = _with_steps(depth, changes)

    check_same_layers(depth.layers, changes.layers)
    return changes


def _with_steps(depth: DepthConfig, changes: Mapping[str, Any]) -> DepthConfig:
    """The depth with changes; its steps, if it has any, as many in all as before."""
    # What belongs to the former basis has no default in another one.
    basis = changes.get("basis", depth.basis)
    if basis != depth.basis:
        left = {"coefficients": None} if basis == "constant" else {"share": 1}
        changes = left | dict(changes)

    changed = dataclasses.replace(depth, **{"steps": None, **changes})
    if "steps" in changes or depth.fixed_steps is None or changed.adaptive:
        return changed

    steps = depth.groups * depth.fixed_steps
    check_divides(steps, changed.groups)
    steps = steps // changed.groups
    return changed if steps == changed.fixed_steps else dataclasses.replace(changed, steps=steps)


def refinement(depth: DepthConfig) -> np.ndarray:
    """Returns the map of `refine`, float64 [K', K]: w' = R w."""
    count, fine = depth.sets, refined_depth(depth).sets
    if depth.basis == "constant":
        return np.repeat(np.eye(count), 2, axis=0)
    if depth.basis == "hat":
        return functions("hat", count, depth.layers, np.linspace(0.0, depth.layers, fine))
    return np.eye(fine, count)


def projection(depth: DepthConfig, target: DepthConfig) -> np.ndarray:
    """Returns the map of `project`, float64 [K', K]: M w' = B w, by Gauss quadrature.

    M_ij is the integral of phi'_i phi'_j over the depth, and B_ik that of phi'_i phi_k.
    """
    # Between the ends of the pieces of both, which are smooth there.
    pieces = {depth.groups, target.groups, depth.layers}
    ends = np.unique(np.concatenate([np.linspace(0.0, depth.layers, n + 1) for n in pieces]))
    ends = ends[np.append(True, np.diff(ends) > 1e-9 * depth.layers)]

    # Exact for products of polynomials, and to the last digits for those of waves.
    x, weights = np.polynomial.legendre.leggauss(16 + depth.sets + target.sets)
    half = np.diff(ends)[:, None] / 2
    times = (ends[:-1, None] + half * (x + 1)).ravel()
    weights = (half * weights).ravel()

    old, new = (functions(d.basis, d.sets, d.layers, times) for d in (depth, target))
    return np.linalg.solve((new.T * weights) @ new, (new.T * weights) @ old)


def along_depth(matrix: np.ndarray, stacked: Any) -> Any:
    """Returns the map of each stacked parameter, [K, ...] -> [K', ...], in its own dtype."""

    def leaf(w: jax.Array) -> jax.Array:
        w = jnp.asarray(w)
        dtype = jnp.promote_types(w.dtype, jnp.float32)
        highest = jax.lax.Precision.HIGHEST
        factors = jnp.asarray(matrix, dtype)
        return jnp.tensordot(factors, w.astype(dtype), 1, precision=highest).astype(w.dtype)

    return jax.tree.map(leaf, stacked)


def _mapped(
    variables: Any, config: ModelConfig, matrix: np.ndarray, depth: DepthConfig
) -> tuple[Any, ModelConfig]:
    # Shapes alone: nothing is initialised.
    inputs = example_inputs(config)
    check_fit(variables, jax.eval_shape(make_model(config).init, jax.random.key(0), *inputs))

    params = variables["params"]
    stack = {**params["depth"], GROUPS: along_depth(matrix, params["depth"][GROUPS])}
    variables = {**variables, "params": {**params, "depth": stack}}
    return variables, dataclasses.replace(config, depth=depth)
