"""Terms by name: the table, what a third one changes, what it reads, and what refuses it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import handwritten
from odeformer import (
    Context,
    DepthConfig,
    LMConfig,
    ODEStack,
    TextConfig,
    TransformerField,
    ViTConfig,
    example_inputs,
    flops,
    make_model,
    make_vector_field,
    terms,
)
from odeformer.transformer.field import init_params
from odeformer.transformer.sharding import parameter_axes
from tests.helpers.terms import bridge, gates
from tests.helpers.trees import noisy

SIZES = dict(width=16, heads=2, mlp=24)
ALL = ("attention", "mlp", "conv", "damping")
Y = jax.random.normal(jax.random.key(0), (2, 5, 16))
EULER = DepthConfig(layers=2)


def stack_of(names, depth=EULER, **changes):
    """A stack of these terms, and parameters of it that are nowhere zero."""
    stack = ODEStack(depth, TransformerField(**SIZES, terms=names, **changes))
    shapes = jax.eval_shape(stack.init, jax.random.key(0), Y, False, Context(source=Y))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return stack, noisy(zeros, 0.3)


def test_the_default_terms_have_the_tree_of_before():
    theta = jax.eval_shape(ODEStack(EULER, TransformerField(**SIZES)).init, jax.random.key(0), Y)
    names = {"attention_norm", "attention_layer", "mlp_norm", "mlp_layer"}
    assert set(theta["params"]["groups"]) == names
    assert ViTConfig().terms == TransformerField(**SIZES).terms == ("attention", "mlp")


def test_each_term_is_one_function_and_their_sum_the_total():
    """In their order, whatever it is; and the parameters are found by name, not by place."""
    stack, params = stack_of(ALL)
    theta = jax.tree.map(lambda x: x[0], params["params"]["groups"])
    args = (jnp.float32(0), Y, (theta, jnp.float32(0)))
    evaluate = lambda field: jax.jit(lambda: [term(*args) for term in (*field.terms, field)])()
    *slopes, total = evaluate(make_vector_field(stack.field))
    np.testing.assert_allclose(sum(slopes), total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slopes[0], handwritten.attention(theta, Y), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes[1], handwritten.mlp(theta, Y), rtol=1e-4, atol=1e-4)

    *turned, _ = evaluate(make_vector_field(stack.field.clone(terms=ALL[::-1])))
    for slope, other in zip(slopes, turned[::-1], strict=True):
        np.testing.assert_allclose(other, slope, rtol=1e-6, atol=1e-6)


def test_a_splitting_takes_the_terms_in_their_order():
    stack, params = stack_of(("mlp", "attention"), DepthConfig(layers=1, solver="lie_trotter"))
    theta = jax.tree.map(lambda x: x[0], params["params"]["groups"])
    y = Y + handwritten.mlp(theta, Y)
    y = y + handwritten.attention(theta, y)
    np.testing.assert_allclose(jax.jit(stack.apply)(params, Y).y1, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "damping"])
def test_a_splitting_of_one_term_is_euler(name):
    """By the counts and by the numbers, all three of them."""
    found = []
    for solver in ("euler", "lie_trotter", "strang"):
        stack, params = stack_of((name,), DepthConfig(layers=2, solver=solver))
        found.append(jax.jit(stack.apply)(params, Y))
        assert found[-1].nfe.tolist() == [[1], [1]]
    for other in found[1:]:
        np.testing.assert_allclose(other.y1, found[0].y1, rtol=1e-6)


def test_masks_of_terms_are_independent():
    """Where slopes are not dropped they are no zeros."""
    field = TransformerField(**SIZES, terms=ALL, dropout=0.5)
    shapes = jax.eval_shape(lambda key: init_params(field, key, Y), jax.random.key(0))
    params = noisy(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), 0.3)
    each = make_vector_field(field, train=True).terms
    args = (jnp.float32(0), jnp.tile(Y, (20, 1, 1)), (params, jnp.float32(0)), jax.random.key(1))
    slopes = jax.jit(lambda: [term(*args) for term in each])()
    kept = np.array([np.asarray(slope != 0).ravel() for slope in slopes])
    np.testing.assert_allclose(kept.mean(axis=1), 0.5, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(kept) - np.eye(4), 0, atol=0.1)


CONFIGS = {
    "vit": lambda **k: ViTConfig(image_size=8, patch_size=4, **SIZES, **k),
    "lm": lambda **k: LMConfig(7, 9, **SIZES, **k),
    "text": lambda **k: TextConfig(7, 9, **SIZES, **k),
}


@pytest.mark.parametrize(("kind", "solver"), [("vit", "strang"), ("lm", "rk4"), ("text", "strang")])
def test_every_model_takes_terms_by_name_and_counts_them(kind, solver):
    """NFE and FLOPs of a solver that evaluates the terms unequally, and of one with a time."""
    depth = DepthConfig(layers=4, share=2, solver=solver, adjoint="store")
    time = "additive" if solver == "strang" else "none"
    config = CONFIGS[kind](terms=list(ALL), depth=depth, time=time)
    assert config.terms == ALL and hash(config)
    model, inputs = make_model(config), example_inputs(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert flops.count(model.apply, variables, *inputs) == flops.forward(config)

    loss = lambda variables, *inputs: model.apply(variables, *inputs).sum()
    assert flops.count(jax.grad(loss), variables, *inputs) == flops.training(config)

    apply = lambda v, *x: model.apply(v, *x, mutable=["ode"])[1]["ode"]["nfe"]
    assert jax.eval_shape(apply, variables, *inputs).shape == (2, 4)
    outer = 4 if solver == "strang" else 8
    assert flops.evaluations(config).tolist() == [4 if solver == "strang" else 16] + [2 * outer] * 3


def test_every_kernel_of_a_term_has_names():
    """Those of a term of one's own under its own name alone."""
    _, params = stack_of(ALL)
    axes = parameter_axes(params["params"])["groups"]
    assert tuple(axes["conv_layer"]["shifted"]["kernel"]) == (None, None, "width", None)
    assert tuple(axes["damping_layer"]["raw"]) == (None, None)
    assert tuple(axes["mlp_layer"]["up"]["kernel"]) == (None, "width", "mlp")


def test_a_term_of_ones_own_reads_the_source(tables):
    """One Euler step by hand, with its norm; per sample under adaptive steps; its axes."""
    terms.register("bridge", bridge())
    assert "bridge" in terms.NAMES and terms.TERMS["bridge"].inputs
    source = jax.random.normal(jax.random.key(3), (2, 3, 16))
    stack, params = stack_of(("bridge",), DepthConfig(layers=1))
    theta = jax.tree.map(lambda x: x[0], params["params"]["groups"])
    up = theta["bridge_layer"]["up"]
    x = handwritten.norm(theta["bridge_norm"], Y) + source.mean(axis=1, keepdims=True)
    expected = Y + jnp.tanh(x @ up["kernel"] + up["bias"])
    found = stack.apply(params, Y, context=Context(source=source)).y1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    axes = parameter_axes(params["params"])["groups"]["bridge_layer"]["up"]
    assert tuple(axes["kernel"]) == (None, "width", "mlp")

    # Of two samples that take steps of their own, each reads its own source.
    alone = ODEStack(DepthConfig(layers=1, solver="heun", rtol=1e-2, per_sample=True), stack.field)
    read = jax.jit(lambda source: alone.apply(params, Y, context=Context(source=source)).y1)
    before, after = read(source), read(source.at[1].add(1.0))
    np.testing.assert_array_equal(before[0], after[0])
    assert float(jnp.abs(before[1] - after[1]).max()) > 0.01

    for context in (None, Context(), Context(source=source[:1]), Context(source=source[0])):
        with pytest.raises(ValueError, match=r"reads context.source, \[B, S, D\]"):
            stack.apply(params, Y, context=context)
    with pytest.raises(ValueError, match="'bridge' reads context.source, which no ViTConfig gives"):
        CONFIGS["vit"](terms=("attention", "bridge"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(terms=("attention", "mlpp")), "unknown term 'mlpp'.*Did you mean 'mlp'"),
        (dict(terms="attention"), "terms is a tuple of names, .*'attention' was given"),
        (dict(terms=()), "terms names one term or more, of attention, mlp"),
        (dict(terms=("mlp", "mlp")), "names each term once.*register the term under a second"),
        (dict(terms=(7,)), "the term is given by its name, a str; 7 was given"),
        (dict(terms=ALL, fused=True), "fused=True joins .*'attention', 'mlp'.*take fused=False"),
        (dict(terms=("mlp", "attention"), fused=True), "fused=True joins"),
        (dict(terms=("mlp",), centre=1.0), "centre=1.0 acts in the term 'attention'"),
        (dict(terms=("damping",), time="additive"), "no term of .* norms it: take time='none'"),
    ],
)
def test_refusals(values, message):
    for make in (CONFIGS["vit"], lambda **k: TransformerField(**SIZES, **k)):
        with pytest.raises(ValueError, match=message):
            make(**values)


def test_terms_that_look_ahead_do_not_fit_a_causal_model(tables):
    """Whether a term does may follow from the config, as attention's and the convolution's."""
    terms.register("ahead", bridge(causal=False, inputs=False))
    CONFIGS["vit"](terms=("ahead",))
    with pytest.raises(ValueError, match="'ahead' does not fit a causal model: .* later tokens"):
        CONFIGS["lm"](terms=("attention", "ahead"))
    CONFIGS["lm"](terms=ALL)


def test_registering(tables):
    @terms.register("first")
    def first():
        return bridge()

    assert first().inputs and terms.get("first").inputs
    for name, term, message in (
        ("mlp", bridge(), "the term 'mlp' is there already: register yours under another name"),
        ("a b", bridge(), "registered under a name, a word .*'a b' was given"),
        (bridge(), None, r"write register\('name', ...\), or @register"),
        ("second", 7, r"terms.register\('second', ...\) takes a Term; 7 was given"),
        ("third", bridge(settings=("gate",)), "setting of term 'third' 'gate'; .*mean 'gated'"),
    ):
        with pytest.raises(ValueError, match=message):
            terms.register(name, term)
    with pytest.raises(TypeError):
        terms.TERMS["mlp"] = bridge()


def test_parts_that_do_not_fit(tables):
    for changes, message in (
        (dict(make=7), "make of a Term is a function of a config; 7 was given"),
        (dict(moves="y"), r"moves of a Term is a tuple of streams' names.*'y' was given"),
        (dict(moves=("cell",)), "a Term moves y or streams that it adds"),
        (dict(adds=("y",)), "y is there without being added"),
        (dict(settings="gated"), "settings of a Term is a tuple of fields' names.*'gated' was"),
        (dict(causal="no"), "causal is True or False; 'no' was given"),
        (dict(decoding="token"), "decoding of a Term is 'tokenwise', a Cached or None"),
        (
            dict(decoding=terms.get("conv").decoding, adds=("cell",)),
            "a Cached reads new tokens of y alone",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            bridge(**changes)

    terms.register("half", gates(moves=("y",)))
    with pytest.raises(ValueError, match="no term of terms=.* moves the stream 'cell'"):
        CONFIGS["vit"](terms=("attention", "half"))
    terms.register("inner", dataclasses.replace(gates(), moves=("cell",)))
    with pytest.raises(ValueError, match="no term of terms=.* moves the stream 'y'"):
        CONFIGS["vit"](terms=("inner",))


# By setting, the term in which it acts, and a value that is not the default.
SETTINGS = {
    "attention": ("attention", "xla"),
    "centre": ("attention", 0.5),
    "kv_heads": ("attention", 1),
    "head_size": ("attention", 4),
    "qk_norm": ("attention", True),
    "qkv_bias": ("attention", False),
    "out_bias": ("attention", False),
    "activation": ("mlp", "relu"),
    "gated": ("mlp", True),
    "mlp_bias": ("mlp", False),
}


def test_settings_without_an_effect_are_refused(tables):
    """And accepted with the term in which they act, or another one that says that it reads them."""
    assert {name: term for name, (term, _) in SETTINGS.items()} | {"positions": "attention"} == (
        dict(terms.SETTINGS)
    )
    own = dataclasses.replace(terms.get("conv"), settings=tuple(SETTINGS))
    terms.register("own", own)
    for name, (term, value) in SETTINGS.items():
        others = tuple(other for other in ALL if other != term)
        message = f"{name}={value!r} acts in the term '{term}', which terms=.*: add it, or take "
        with pytest.raises(ValueError, match=message):
            TransformerField(**SIZES, terms=others, **{name: value})
        for names in ((term,), (*others, "own")):
            assert getattr(TransformerField(**SIZES, terms=names, **{name: value}), name) == value
    # The defaults are accepted with any term.
    for name in ALL:
        TransformerField(**SIZES, terms=(name,))


@pytest.mark.parametrize("kind", ["lm", "text"])
def test_rotary_positions_without_a_term_that_turns_are_refused(kind, tables):
    make = CONFIGS[kind]
    with pytest.raises(
        ValueError, match="positions='rotary' acts in the term 'attention', .*'lear"
    ):
        make(terms=("conv", "mlp"))
    assert make(terms=("conv", "mlp"), positions="learned").positions == "learned"
    with pytest.raises(ValueError, match="rotary_base=5.0 has no effect with positions='learned'"):
        make(terms=("conv", "mlp"), positions="learned", rotary_base=5.0)
    terms.register("turned", dataclasses.replace(terms.get("conv"), settings=("positions",)))
    assert make(terms=("turned",)).positions == "rotary"
