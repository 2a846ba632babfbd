"""The language model: causality, documents apart from one another, positions, heads, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import LM, DepthConfig, LMConfig, ODEStack, TransformerField, presets, solvers
from tests.helpers.masks import check_embedded_tokens_are_dropped
from tests.helpers.trees import noisy

SMALL = LMConfig(
    vocabulary=7, block_size=12, width=16, heads=2, mlp=32, depth=DepthConfig(layers=2)
)
# Each token once a sample, so that the gradient of its embedding is that of its place.
TOKENS = jnp.array([[3, 0, 6, 1, 5, 2, 4], [1, 2, 0, 4, 3, 6, 5]])


def make(**changes):
    """A model and parameters that are zero nowhere."""
    model = LM(dataclasses.replace(SMALL, **changes))
    variables = jax.jit(model.init)(jax.random.key(1), TOKENS)
    return model, noisy(variables)


def apply(model, variables, tokens=TOKENS, *args, **kwargs):
    return jax.jit(lambda v, x: model.apply(v, x, *args, **kwargs))(variables, tokens)


# What Llama and Qwen need, and more at once.
SHARED_KEYS = dict(kv_heads=1, head_size=6, qk_norm=True, norm="rms", gated=True, mlp_bias=False)
SHARED_KEYS |= dict(qkv_bias=False, out_bias=False, rotary_fraction=0.7, rotary_scaling="linear")
SHARED_KEYS |= dict(rotary_factor=2.0, centre=0.5)


def influence(depth, positions="rotary", options=None, **layout):
    """Norm of the gradient of output i with respect to the embedding of place j, [N, N]."""
    model, variables = make(depth=depth, positions=positions, tied=False, **(options or {}))
    weights = jnp.linspace(-1, 1, 7)

    def output(table, place):
        params = {**variables["params"], "embedding": {"embedding": table}}
        return model.apply({"params": params}, TOKENS[:1], **layout)[0, place] @ weights

    gradient = jax.jit(jax.grad(output))
    table = variables["params"]["embedding"]["embedding"]
    rows = [jnp.abs(gradient(table, i)).sum(axis=-1)[TOKENS[0]] for i in range(7)]
    return np.stack(rows)


@pytest.mark.parametrize(
    ("solver", "positions"),
    [
        *((name, "rotary") for name in ("lie_trotter", "rk4", "tsit5")),
        *(
            pytest.param(name, "rotary", marks=pytest.mark.slow)
            for name in solvers.NAMES
            if name not in ("lie_trotter", "rk4", "tsit5")
        ),
        pytest.param("rk4", "learned", marks=pytest.mark.slow),
    ],
)
def test_no_output_depends_on_a_later_token(solver, positions):
    depth = DepthConfig(layers=2, share=2, steps=1, solver=solver)
    matrix = influence(depth, positions)
    assert np.all(np.triu(matrix, 1) == 0.0)
    assert np.all(np.tril(matrix)[np.tril_indices(7)] > 0.0)


@pytest.mark.parametrize("adjoint", ["checkpoint", "store", "recursive", "direct"])
def test_causality_whatever_the_adjoint(adjoint):
    matrix = influence(DepthConfig(layers=2, solver="heun", adjoint=adjoint))
    assert np.all(np.triu(matrix, 1) == 0.0) and np.all(np.diag(matrix) > 0.0)


def test_causality_where_heads_share_keys():
    matrix = influence(DepthConfig(layers=2, solver="lie_trotter"), options=SHARED_KEYS)
    assert np.all(np.triu(matrix, 1) == 0.0)
    assert np.all(np.tril(matrix)[np.tril_indices(7)] > 0.0)


@pytest.mark.parametrize(
    ("solver", "options"), [("strang", {}), ("rk4", {}), ("euler", SHARED_KEYS)]
)
def test_no_token_sees_another_document(solver, options):
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0]])
    positions = jnp.array([[0, 1, 2, 0, 1, 0, 1]])
    depth = DepthConfig(layers=2, solver=solver)
    layout = dict(segments_BN=segments, positions_BN=positions)
    matrix = influence(depth, options=options, **layout)
    same = np.asarray(segments[0][:, None] == segments[0])
    assert np.all(matrix[~np.tril(same)] == 0.0) and np.all(matrix[np.tril(same)] > 0.0)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_document_reads_the_same_wherever_it_stands_in_a_block(positions):
    model, variables = make(positions=positions, depth=DepthConfig(layers=2, solver="midpoint"))
    first, second = TOKENS[:1, :4], TOKENS[1:, :3]
    block = jnp.concatenate([first, second], axis=1)
    logits = apply(
        model,
        variables,
        block,
        segments_BN=jnp.array([[1, 1, 1, 1, 2, 2, 2]]),
        positions_BN=jnp.array([[0, 1, 2, 3, 0, 1, 2]]),
    )
    alone = [apply(model, variables, tokens) for tokens in (first, second)]
    np.testing.assert_allclose(logits, jnp.concatenate(alone, axis=1), atol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_order_matters(positions):
    model, variables = make(positions=positions)
    swapped = TOKENS.at[:, :2].set(TOKENS[:, 1::-1])
    change = apply(model, variables)[:, 3:] - apply(model, variables, swapped)[:, 3:]
    assert float(jnp.abs(change).max()) > 1e-4


def test_rotary_attention_depends_on_distance_alone():
    model, variables = make()
    shifted = apply(model, variables, positions_BN=jnp.arange(3, 10) + 0 * TOKENS)
    np.testing.assert_allclose(shifted, apply(model, variables), atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "tied"), [("learned", True), ("learned", False), ("rotary", True)]
)
def test_logits_written_by_hand(positions, tied):
    """Rotary positions in complex numbers: q_m conj(k_n) exp(i (m - n) / 10000^(2j / K))."""
    model, variables = make(positions=positions, tied=tied)
    p = variables["params"]
    assert ("head" in p) != tied
    causal = jnp.tril(jnp.ones((7, 7), bool))
    distance = np.subtract.outer(np.arange(7), np.arange(7))
    turns = np.exp(1j * distance[..., None] / 10_000 ** (np.arange(0, 8, 2) / 8))

    def product(q, k):
        if positions == "learned":
            return q @ k.swapaxes(-1, -2)
        q, k = (x[..., :4] + 1j * x[..., 4:] for x in (q, k))
        return jnp.einsum("bhmk,bhnk,mnk->bhmn", q, k.conj(), turns).real

    def attention(layer, x):
        qkv = jnp.einsum("bnd,dchk->cbhnk", x, layer["qkv"]["kernel"])
        q, k, v = qkv + layer["qkv"]["bias"][:, None, :, None]
        scores = jnp.where(causal, product(q, k) / np.sqrt(8), -jnp.inf)
        mixed = jax.nn.softmax(scores) @ v
        return jnp.einsum("bhnk,hkd->bnd", mixed, layer["out"]["kernel"]) + layer["out"]["bias"]

    @jax.jit
    def by_hand(p):
        y = p["embedding"]["embedding"][TOKENS]
        if positions == "learned":
            y = y + p["position_embedding"]["embedding"][:7]
        for n in range(2):
            theta = jax.tree.map(lambda leaf, n=n: leaf[n], p["depth"]["groups"])
            slope = attention(
                theta["attention_layer"], handwritten.norm(theta["attention_norm"], y)
            )
            up, down = theta["mlp_layer"]["up"], theta["mlp_layer"]["down"]
            hidden = handwritten.norm(theta["mlp_norm"], y) @ up["kernel"] + up["bias"]
            y = y + slope + jax.nn.gelu(hidden) @ down["kernel"] + down["bias"]
        y = handwritten.norm(p["norm"], y)
        return y @ (p["embedding"]["embedding"].T if tied else p["head"]["kernel"])

    np.testing.assert_allclose(apply(model, variables), by_hand(p), rtol=1e-4, atol=1e-5)


def test_fused_is_the_same_function():
    model, variables = make()
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2]] * 2)
    fused = LM(dataclasses.replace(model.config, fused=True))
    np.testing.assert_allclose(
        apply(fused, variables, TOKENS, segments),
        apply(model, variables, TOKENS, segments),
        atol=1e-5,
    )


def test_dropout_acts_in_training_alone():
    model, variables = make(dropout=0.3)
    train = jax.jit(lambda key: model.apply(variables, TOKENS, train=True, rngs={"dropout": key}))
    run = lambda seed: train(jax.random.key(seed))
    np.testing.assert_array_equal(run(0), run(0))
    assert float(jnp.abs(run(0) - run(1)).max()) > 1e-4
    _, aux = apply(model, variables, mutable=["ode"])
    assert aux["ode"]["nfe"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("rates", [dict(dropout=0.5), dict(drop_path=0.5)])
def test_the_embedded_tokens_are_dropped_by_dropout_alone(rates):
    check_embedded_tokens_are_dropped(*make(**rates), TOKENS, rates)


def test_float64(float64):
    model = LM(dataclasses.replace(SMALL, dtype="float64"))
    variables = jax.jit(model.init)(jax.random.key(1), TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float64")}
    program = str(jax.make_jaxpr(model.apply)(variables, TOKENS))
    assert "f32[" not in program
    single = apply(LM(SMALL), jax.tree.map(lambda x: x.astype("float32"), variables))
    np.testing.assert_allclose(apply(model, variables), single, atol=1e-5)


EXACT = {"gpt_nano": 10_746_240, "gpt_small": 124_439_808, "gpt_1b": 1_275_711_488}


@pytest.mark.parametrize("name", presets.LM_NAMES)
def test_parameter_counts(name):
    model = LM(presets.lm(name))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == EXACT[name]


def test_adaptive_steps_are_refused_with_the_reason():
    message = "a token's output would depend on later ones; leave rtol out and give steps"
    with pytest.raises(ValueError, match=message):
        presets.lm("gpt_nano", depth={"solver": "tsit5", "rtol": 1e-3})
    with pytest.raises(ValueError, match=message):
        ODEStack(
            DepthConfig(solver="tsit5", rtol=1e-3, per_sample=True),
            TransformerField(width=16, heads=2, mlp=32, causal=True),
        )


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            jnp.zeros((2, 13), int),
            "13 tokens were given, and the model's block holds block_size=12",
        ),
        (jnp.array([[0, 7]]), r"tokens are 0 to 6 \(vocabulary=7\); 0 to 7 were given"),
        (jnp.array([[-1, 3]]), "-1 to 3 were given"),
        (jnp.zeros((2, 3)), r"integers of shape \[batch, tokens\]; float32"),
        (jnp.zeros(3, int), r"of shape \[3\] was given"),
    ],
)
def test_token_refusals(tokens, message):
    model, variables = make()
    with pytest.raises(ValueError, match=message):
        model.apply(variables, tokens)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (dict(segments_BN=TOKENS[:, :4]), r"segments are integers of the tokens' shape \[2, 7\]"),
        (dict(positions_BN=TOKENS * 1.0), r"positions are integers .* float32 of shape \[2, 7\]"),
        (dict(positions_BN=TOKENS + 6), "positions are 0 to 11 .*; 6 to 12 were given"),
    ],
)
def test_layout_refusals(layout, message):
    model, variables = make()
    with pytest.raises(ValueError, match=message):
        model.apply(variables, TOKENS, **layout)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(positions="sincos"), "unknown positions 'sincos'; accepted: rotary, learned"),
        (dict(width=18, heads=2), "an odd number: take other heads"),
        (dict(block_size=0), "block_size is a whole number, 1 or more; 0"),
        (dict(heads=3), "heads=3 does not divide width=16"),
    ],
)
def test_config_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
