"""What is added from outside: data sets, tasks and metrics, by their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tables import names_taken_back
from tests.helpers.tiny import make_tiny, make_tiny_language, make_tiny_sentences
from train import tasks
from train.checkpoint.retention import best_step
from train.config.border import from_config_dict
from train.config.help import list_keys
from train.config.tables import IMAGE_SETS
from train.data import sources
from train.data.blank import blank_split
from train.data.images import digits
from train.data.sources import load_splits
from train.data.text.documents import LabelledTexts
from train.errors import BadInput
from train.tasks import make_task
from train.tasks.images import ImageTask
from train.tasks.task import cross_entropy

THREE = ("train", "validation", "test")


@pytest.fixture
def taken_back():
    with names_taken_back():
        yield


def test_a_set_of_images(taken_back, tiny):
    @sources.register("mirrored")
    def mirrored(data):
        assert data.validation_examples == 0  # the whole group `data` of the config
        return digits.load(data.fold)

    tiny.data.name = "mirrored"
    splits = load_splits(from_config_dict(tiny))
    assert [len(splits[name]) for name in THREE] == [1257, 180, 360]
    assert "One of digits, mirrored, a set of" in help_text()

    with pytest.raises(BadInput, match="set of images 'digits': the name is taken"):
        sources.register("digits", mirrored)
    with pytest.raises(BadInput, match="unknown task 'image'.*'images'"):
        sources.register("other", mirrored, task="image")
    tiny.data.name = "mirored"
    with pytest.raises(BadInput, match="neither 'digits' nor 'mirrored' nor a set"):
        load_splits(from_config_dict(tiny))


def help_text():
    return " ".join(" ".join(list_keys("config")).split())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda: None, "a data set returns a dict of 'train'.*None was returned"),
        (lambda: {"train": 1}, r"\['train'\] was returned"),
        (lambda: dict.fromkeys(THREE, 3), "split 'train' is an Images, or an object.*3 was"),
    ],
)
def test_what_is_no_set_of_images(taken_back, tiny, returned, message):
    sources.register("wrong", lambda data: returned())
    tiny.data.name = "wrong"
    with pytest.raises(BadInput, match=f"config.data.name='wrong': .*{message}"):
        load_splits(from_config_dict(tiny))


def test_a_set_of_documents_and_one_of_sentences(taken_back):
    texts = {name: [f"{name} has some words of its own. " * 9] * 9 for name in THREE}
    sources.register("told", lambda data: texts, task="language")
    cfg = make_tiny_language()
    cfg.data.update(name="told", files=None, tokenizer="bytes")
    cfg.model.vocabulary = 257
    splits = load_splits(from_config_dict(cfg))
    assert all(len(splits[name]) > 0 for name in THREE)

    labels = np.arange(9, dtype=np.int32) % 2
    labelled = {name: LabelledTexts(texts[name], labels, 2) for name in THREE}
    sources.register("opposed", lambda data: labelled, task="sentences")
    cfg = make_tiny_sentences(None)
    cfg.data.update(name="opposed", data_dir=None, tokenizer="bytes")
    cfg.model.vocabulary = 257
    splits = load_splits(from_config_dict(cfg))
    assert [len(splits[name]) for name in THREE] == [9, 9, 9]

    labelled["test"] = LabelledTexts(texts["test"], labels + 1, 2)
    with pytest.raises(BadInput, match="opposed/test: record 1 has label 2"):
        load_splits(from_config_dict(cfg))
    sources.register("untold", lambda data: dict.fromkeys(THREE, "a text"), task="language")
    cfg = make_tiny_language()
    cfg.data.update(name="untold", files=None)
    with pytest.raises(BadInput, match="is a list of texts; 'a text' was returned"):
        load_splits(from_config_dict(cfg))


def test_a_task(taken_back, tiny):
    @tasks.register("doubled", like="images")
    class Doubled(ImageTask):
        def loss(self, logits, targets):
            loss, metrics = super().loss(logits, targets)
            return 2 * loss, metrics

    tiny.task = "doubled"
    config = from_config_dict(tiny)
    task = make_task(config, blank_split(config))
    assert isinstance(task, Doubled)
    logits, labels = jnp.arange(20.0).reshape(2, 10), jnp.array([3, 4])
    loss, _ = task.loss(logits, (labels, labels))
    np.testing.assert_allclose(loss, 2 * cross_entropy(logits, labels).mean(), rtol=1e-6)

    with pytest.raises(BadInput, match="task 'doubled': the name is taken"):
        tasks.register("doubled", Doubled, like="images")
    with pytest.raises(BadInput, match="unknown task 'image'"):
        tasks.register("other", Doubled, like="image")
    with pytest.raises(BadInput, match="the task 'empty' lacks constants, prepare, .*summarise"):
        tasks.register("empty", type("Empty", (), {}), like="images")
    tiny.task = "doubledd"
    with pytest.raises(BadInput, match="accepted: images, language, sentences, doubled"):
        from_config_dict(tiny)


def test_a_metric(taken_back):
    @tasks.register_metric("top3", better="higher")
    def top3(logits, batch):
        _, best = jax.lax.top_k(logits, 3)
        return (best == batch["label"][:, None]).any(axis=-1)

    tasks.register_metric("doubt", lambda logits, batch: -logits.max(axis=-1), better="lower")
    cfg = make_tiny()
    cfg.eval.metrics = ("top3", "doubt")
    cfg.checkpoint.best = "val/top3"
    config = from_config_dict(cfg)
    task = make_task(config, blank_split(config))

    logits = jnp.tile(jnp.arange(10.0), (4, 1))
    batch = {"label": jnp.array([9, 7, 6, 0])}
    scores = task.scores(logits, batch, {})
    np.testing.assert_array_equal(scores["top3"], [True, True, False, False])
    summary = task.summarise({name: np.asarray(score) for name, score in scores.items()})
    assert (summary["top3"], summary["doubt"], summary["accuracy"]) == (0.5, -9.0, 0.25)
    assert (task.unit, task.units_per_example) == ("images", 1)

    assert best_step({1: 0.5, 2: 0.75}, "val/top3") == 2
    assert best_step({1: 0.5, 2: 0.75}, "val/doubt") == 1
    assert "names of registered metrics (top3, doubt)" in help_text()


def test_what_is_no_metric(taken_back, tiny):
    score = lambda logits, batch: logits.max(axis=-1)
    with pytest.raises(BadInput, match="metric 'loss': the name is taken"):
        tasks.register_metric("loss", score, better="lower")
    with pytest.raises(BadInput, match="'m' is better 'higher' or 'lower'; 'more' was given"):
        tasks.register_metric("m", score, better="more")
    tiny.eval.metrics = ("m",)
    with pytest.raises(BadInput, match=r"eval.metrics is a list of .*none is yet\); \('m',\) was"):
        from_config_dict(tiny)

    tasks.register_metric("m", score, better="higher")
    tiny.eval.metrics, tiny.checkpoint.best = (), "val/m"
    with pytest.raises(BadInput, match="best='val/m' is not measured: add 'm' to config.eval"):
        from_config_dict(tiny)
    tiny.checkpoint.best = "val/n"
    with pytest.raises(BadInput, match="best is one of val/loss, val/accuracy, val/m; val/n was"):
        from_config_dict(tiny)

    class Own(ImageTask):
        def scores(self, logits, batch, constants):
            return {**super().scores(logits, batch, constants), "m": logits.max(axis=-1)}

    tasks.register("own", Own, like="images")
    tiny.task, tiny.eval.metrics, tiny.checkpoint.best = "own", ("m",), None
    config = from_config_dict(tiny)
    with pytest.raises(BadInput, match="'m' is a score of the task itself"):
        make_task(config, blank_split(config)).scores(
            jnp.zeros((1, 10)), {"label": jnp.zeros(1, int)}, {}
        )


def test_the_tables_are_read_only():
    with pytest.raises(TypeError):
        IMAGE_SETS["other"] = digits.load
