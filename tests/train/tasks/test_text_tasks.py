"""The tasks of text: losses and scores against those computed by hand, over what counts alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

from odeformer import LM, TextClassifier
from odeformer.transformer.state import Context
from tests.helpers.checkout import ROOT
from tests.helpers.tiny import make_tiny_language, make_tiny_sentences
from train.config.border import from_config_dict
from train.data.pipeline import eval_batches, train_batches
from train.data.sources import load_splits
from train.devices.mesh import device_mesh
from train.errors import BadInput
from train.optimizer import make_optimizer
from train.scores import make_eval_step, score, summarise
from train.state import init_state
from train.step import make_train_step
from train.tasks import make_task
from train.tasks.images import ImageTask
from train.tasks.task import Keys, cross_entropy


def make(cfg):
    config = from_config_dict(cfg)
    splits = load_splits(config)
    mesh = device_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    state = init_state(config, optimizer, mesh)
    return config, splits, mesh, state, make_task(config, splits["train"])


def make_step(config, task, mesh):
    optimizer = make_optimizer(config.optimizer, config.train_steps)
    return make_train_step(config, optimizer, task, mesh)


def first_batch(config, splits):
    return next(train_batches(splits["train"], config.batch_size, 1, config.seed))


@pytest.fixture(scope="module", params=["documents", "stream"])
def language(request):
    cfg = make_tiny_language()
    cfg.model.dropout = 0.0
    cfg.data.packing = request.param
    cfg.optimizer.label_smoothing = 0.2
    return make(cfg)


def test_language_loss_counts_each_token_once_and_padding_never(language):
    config, splits, mesh, state, task = language
    params = jax.device_get(state.params)
    batch = first_batch(config, splits)
    batch["segments"][0, 5:] = 0
    model = LM(config.model)
    logits = model.apply({"params": params}, batch["tokens"], batch["segments"], batch["positions"])
    log = np.asarray(jax.nn.log_softmax(logits))
    chosen = np.take_along_axis(log, batch["targets"][..., None], axis=-1)[..., 0]
    smooth = -(0.8 * chosen + 0.2 * log.mean(axis=-1))
    counted = batch["segments"] > 0
    state = jax.tree.map(jnp.copy, state)  # the step is given its own to donate
    _, metrics = make_step(config, task, mesh)(state, batch)
    np.testing.assert_allclose(metrics["loss"], smooth[counted].mean(), rtol=1e-5)
    right = (log.argmax(-1) == batch["targets"])[counted]
    np.testing.assert_allclose(metrics["accuracy"], right.mean(), rtol=1e-5)


def test_bits_per_byte_of_a_split(language):
    """Of the whole validation split: nats over its own bytes, all of them counted once."""
    config, splits, mesh, state, task = language
    data, params = splits["validation"], state.params
    step = make_eval_step(config.model, task, mesh)
    metrics = summarise(task, score(params, data, 5, mesh, step))
    nats, tokens, size = 0.0, 0, 0
    for batch in eval_batches(data, len(data)):
        inputs = (batch["tokens"], batch["segments"], batch["positions"])
        losses = cross_entropy(
            LM(config.model).apply({"params": params}, *inputs), batch["targets"]
        )
        counted = batch["segments"] > 0
        nats += float(np.asarray(losses)[counted].sum(dtype=np.float64))
        tokens += int(counted.sum())
        size += len(b"".join(map(data.tokenizer.token_bytes, batch["targets"][counted].tolist())))
    assert metrics["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(nats / tokens), rel=1e-4)
    assert metrics["nfe"] == 8 and metrics["failed_solves"] == 0
    assert size == pytest.approx(0.1 * (ROOT / "LICENSE").stat().st_size, rel=0.1)


def test_no_token_of_a_packed_block_sees_another_document(tmp_path):
    """The pipeline's own segments and positions, in the model: gradients of exactly zero."""
    for n in range(30):
        (tmp_path / f"{n}.txt").write_text("word " * (n % 3 + 1) + "\n")
    cfg = make_tiny_language()
    cfg.data.update(files=str(tmp_path), tokenizer="bytes", held_out_fraction=0.2)
    cfg.model.update(vocabulary=257, dropout=0.0)
    config, splits, _, state, _ = make(cfg)
    batch = next(eval_batches(splits["train"], 1))
    segments = batch["segments"][0]
    assert segments.max() > 1  # several documents stand in the block
    model = LM(config.model).bind({"params": state.params})
    context = Context(batch["segments"], model.rotation(jnp.asarray(batch["positions"])))

    def output(y, place):
        return jnp.sin(model.depth(y, context=context).y1)[0, place].sum()

    y = jax.random.normal(jax.random.key(0), (1, segments.size, 16))
    gradient = jax.jit(jax.grad(output))
    rows = np.stack([np.abs(gradient(y, i)).sum(axis=(0, 2)) for i in range(segments.size)])
    same = np.tril(segments[:, None] == segments[None, :])
    assert np.all(rows[~same] == 0.0) and np.all(np.diag(rows) > 0.0)


@pytest.fixture(scope="module")
def sentences(opinions_dir):
    return make(make_tiny_sentences(opinions_dir))


def test_sentence_scores(sentences):
    config, splits, mesh, state, task = sentences
    data = splits["test"]
    step = make_eval_step(config.model, task, mesh)
    scores = score(state.params, data, 4, mesh, step)
    batch = next(eval_batches(data, len(data)))
    logits = TextClassifier(config.model).apply(
        {"params": state.params}, batch["tokens"], batch["mask"]
    )
    np.testing.assert_array_equal(scores["predicted"], logits.argmax(-1))
    np.testing.assert_allclose(scores["loss"], cross_entropy(logits, batch["label"]), atol=1e-5)
    metrics = summarise(task, scores)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == batch["label"]).mean())
    assert metrics["f1"] == pytest.approx(f1_score(batch["label"], logits.argmax(-1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_sentence_loss_with_smoothed_labels(sentences, smoothing, opinions_dir):
    """Of a distribution: 1 - s of it on the label, s spread evenly over both classes."""
    config, splits, *_ = sentences
    cfg = make_tiny_sentences(opinions_dir)
    cfg.optimizer.label_smoothing = smoothing
    task = make_task(from_config_dict(cfg), splits["train"])
    batch = first_batch(config, splits)
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), config.batch_size))
    _, targets = task.prepare(batch, keys, task.constants())

    logits = np.random.default_rng(0).normal(0, 2, (config.batch_size, 2))
    loss, metrics = task.loss(jnp.asarray(logits), targets)
    wanted = (1 - smoothing) * np.eye(2)[batch["label"]] + smoothing / 2
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(loss, -(wanted * log).sum(axis=1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (log.argmax(1) == batch["label"]).mean())


def test_f1_of_several_classes_is_their_mean(sentences):
    *_, task = sentences
    task._classes = 3
    given = {"label": np.array([0, 1, 2, 2]), "predicted": np.array([0, 2, 2, 2])}
    scores = {"loss": np.zeros(4), "correct": np.ones(4), **given}
    assert task.summarise(scores)["f1"] == pytest.approx((1 + 0 + 0.8) / 3)
    task._classes = 2


def test_hidden_tokens_are_drawn_by_sentence(sentences):
    config, splits, _, _, task = sentences
    batch = first_batch(config, splits)
    keys = lambda draw: Keys(
        jax.random.key(0),
        jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(draw), batch["index"]),
    )
    (tokens, mask), labels = task.prepare(batch, keys(1), {})
    np.testing.assert_array_equal(tokens, batch["tokens"])
    np.testing.assert_array_equal(labels, batch["label"])
    hidden = batch["mask"] & ~np.asarray(mask)
    assert not np.any(np.asarray(mask) & ~batch["mask"]) and np.all(np.asarray(mask).any(axis=1))
    assert 0.1 < hidden.sum() / batch["mask"].sum() < 0.5
    (_, again), _ = task.prepare(batch, keys(1), {})
    (_, other), _ = task.prepare(batch, keys(2), {})
    np.testing.assert_array_equal(mask, again)
    assert np.any(np.asarray(mask) != np.asarray(other))
    part = {name: array[2:5] for name, array in batch.items()}
    (_, alone), _ = task.prepare(part, Keys(keys(1).batch, keys(1).samples[2:5]), {})
    np.testing.assert_array_equal(mask[2:5], alone)


def test_a_sentence_keeps_a_token(sentences, opinions_dir):
    """Where all of its tokens would be hidden, none is."""
    config, splits, *_ = sentences
    cfg = make_tiny_sentences(opinions_dir)
    cfg.data.token_dropout = 0.9999
    task = make_task(from_config_dict(cfg), splits["train"])
    batch = first_batch(config, splits)
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), config.batch_size))
    (_, mask), _ = task.prepare(batch, keys, {})
    np.testing.assert_array_equal(mask, batch["mask"])


def test_classes_that_do_not_fit(sentences, opinions_dir):
    _, splits, *_ = sentences
    cfg = make_tiny_sentences(opinions_dir)
    cfg.model.classes = 5
    with pytest.raises(BadInput, match="classes of data set 'opinions' is 2, the model's is 5"):
        make_task(from_config_dict(cfg), splits["train"])


def test_scores_that_are_not_finite_are_warned_about(capsys):
    scores = {"loss": np.array([0.5, np.nan, np.inf]), "nfe": np.ones(3), "failed": np.zeros(3)}
    scores["correct"] = np.ones(3)
    task = ImageTask.__new__(ImageTask)  # of which `summarise` reads nothing
    summarise(task, scores)
    assert "the loss of 2 of 3 examples is NaN or infinite" in capsys.readouterr().err
    summarise(task, {name: values[:1] for name, values in scores.items()})
    assert not capsys.readouterr().err
