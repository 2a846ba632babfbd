"""Runs on text: what they write, that they resume bit for bit, text from them, refusals."""

import copy
import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from odeformer import LM, TextClassifier, generate
from tests.helpers.checkout import ROOT, code_block
from tests.helpers.keys_read import keys_read
from tests.helpers.programs import interrupt_at_second_score, run, start, timeless
from tests.helpers.tiny import make_tiny_language, make_tiny_sentences
from train import command_line, evaluate
from train import generate as program
from train.checkpoint.weights import load_model, load_params
from train.checkpoint.workdir import check_inputs, read_inputs, read_tokenizer, record_run
from train.config.border import from_config_dict
from train.data.inputs import to_json
from train.data.sources import load_splits
from train.errors import BadInput
from train.logs.metrics import read_metrics, read_scores
from train.loop import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny language model, trained to its end: its config and workdir."""
    cfg = make_tiny_language()
    workdir = tmp_path_factory.mktemp("language")
    train(cfg, workdir)
    return cfg, workdir


def test_what_a_language_run_writes(finished):
    _, workdir = finished
    last = read_metrics(workdir)[-1]
    assert {"test/loss", "test/accuracy", "test/perplexity", "test/bits_per_byte"} <= set(last)
    assert any("train/tokens_per_sec" in line for line in read_metrics(workdir))
    scores = read_scores(workdir)
    assert {"loss", "correct", "tokens", "bytes"} <= set(scores)
    total = scores["tokens"] @ scores["loss"]
    assert total / scores["tokens"].sum() == pytest.approx(last["test/loss"], rel=1e-5)
    tokenizer = read_tokenizer(workdir)
    text = (ROOT / "LICENSE").read_text()
    assert tokenizer.vocabulary == 300
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_the_example_of_the_page_on_text_runs(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/pydocs").symlink_to(finished[1])
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(code_block("docs/text.md"), scope)
    assert scope["logits"].shape == (1, len(scope["tokens"]), 300)


def test_a_language_run_resumes_bit_for_bit(finished, tmp_path):
    cfg, whole = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.score", interrupt_at_second_score())
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path)
    # The tokeniser is the run's own: it is not made again.
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("train.data.text.sources.train_bpe")
        train(cfg, tmp_path)
    config = from_config_dict(cfg)
    for a, b in zip(
        *(jax.tree.leaves(load_params(w, config)) for w in (whole, tmp_path)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert list(map(timeless, read_metrics(tmp_path))) == list(map(timeless, read_metrics(whole)))


def test_a_language_run_notices_that_its_files_have_changed(tmp_path):
    """A run of before, whose inputs.json has no origin, continues."""
    text, workdir = tmp_path / "a.txt", tmp_path / "run"
    whole = (ROOT / "LICENSE").read_text()
    text.write_text(whole)
    cfg = make_tiny_language()
    cfg.data.update(files=str(text), tokenizer="bytes")
    cfg.model.vocabulary = 257
    config = from_config_dict(cfg)
    record_run(epath.Path(workdir), config, load_splits(config)["train"])
    (workdir / "checkpoints" / "3").mkdir(parents=True)

    stored = json.loads((workdir / "inputs.json").read_text())
    assert stored["origin"]["characters"] == len(whole)
    for changed, message in (
        (whole + "more", f"it had {len(whole):,} characters and has {len(whole) + 4:,}"),
        (whole.replace("License", "Licence"), "as many characters as before, and not the same"),
    ):
        text.write_text(changed)
        with pytest.raises(BadInput, match=f"text of config.data.files has changed .*{message}"):
            train(cfg, workdir)

    del stored["origin"]
    (workdir / "inputs.json").write_text(json.dumps(stored))
    check_inputs(epath.Path(workdir), config, load_splits(config)["train"])
    assert to_json("language", read_inputs(workdir)) == json.dumps(stored, indent=2)


def test_the_same_weights_under_every_solver(finished, capsys, monkeypatch):
    """A causal model takes no adaptive steps: the table has none."""
    _, workdir = finished
    start(monkeypatch, evaluate, f"--workdir={workdir}", "--solvers=euler,tsit5")
    table = capsys.readouterr().out
    assert table.count("tsit5") == 1 and "rtol" not in table and "ppl" in table
    with pytest.raises(BadInput, match="a token's output would depend on later ones"):
        start(
            monkeypatch,
            evaluate,
            f"--workdir={workdir}",
            "--config.depth.solver=tsit5",
            "--config.depth.rtol=0.1",
        )


def test_text_from_the_program_is_the_librarys(finished, capsys, monkeypatch):
    _, workdir = finished
    arguments = ["--prompt=Licence", "--prompt=You may", "--max_new_tokens=12", "--temperature=0"]
    start(monkeypatch, program, f"--workdir={workdir}", *arguments)
    printed = capsys.readouterr().out
    model, variables = load_model(workdir)
    assert isinstance(model, LM)
    tokenizer = read_tokenizer(workdir)
    prompts = [[tokenizer.end, *tokens] for tokens in tokenizer.encode(["Licence", "You may"])]
    new = generate(model, variables, prompts, max_new_tokens=12, temperature=0.0, end=tokenizer.end)
    first, second = (tokenizer.decode(tokens) for tokens in new)
    assert printed == f"Licence{first}\n\nYou may{second}\n"
    other = [f"--workdir={workdir}", "--prompt=You", "--config.depth.solver=rk4", "--seed=3"]
    start(monkeypatch, program, *other)
    assert capsys.readouterr().out.startswith("You")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"? ?"), ("latin-1", b"\xe9 ?")])
def test_text_on_a_terminal_that_cannot_show_it(finished, encoding, shown, monkeypatch):
    """Nor can it be known what comes: a run's text is any text."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    arguments = [f"--workdir={finished[1]}", "--prompt=\u00e9 \u2192", "--max_new_tokens=2"]
    command = copy.deepcopy(program.FLAGS)
    monkeypatch.setattr(program, "FLAGS", command)
    assert command_line.run(program.main, ["generate", *arguments], command, None, "config") == 0
    sys.stdout.flush()
    assert written.getvalue().startswith(shown)


def test_a_prompt_in_bytes_that_the_locale_cannot_decode(monkeypatch):
    """As Python has it under LC_ALL=C and PYTHONUTF8=0."""
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    given = "\u00e9 \u2192".encode().decode("ascii", "surrogateescape")
    assert program.as_text(given) == "\u00e9 \u2192"
    assert program.as_text("plain") == "plain"


@pytest.mark.slow
def test_generate_in_a_locale_without_utf8(finished):
    environ = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "train.generate", f"--workdir={finished[1]}"]
    command += ["--prompt=\u00e9 Licence".encode(), "--max_new_tokens=3"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"? Licence"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--prompt is missing"),
        (["--prompt="], "--prompt is empty"),
        (["--prompt=\udcff"], "is not UTF-8"),
        (["--prompt=" + "word " * 40], r"has \d+ tokens, and the model's block of block_size=32"),
        (["--prompt=x", "--top_p=0"], "top_p is greater than 0 and at most 1; 0.0"),
        (["--prompt=x", "--top_k=0"], "top_k is a whole number, 1 or more; 0"),
        (["--prompt=x", "--temperature=-1"], "temperature is 0 or more; -1.0"),
        (["--prompt=x", "--config.model.vocabulary=310"], r"does not fit the model: .*\[300, 16\]"),
    ],
)
def test_refusals_of_the_program(finished, arguments, message, monkeypatch):
    _, workdir = finished
    with pytest.raises(BadInput, match=message):
        start(monkeypatch, program, f"--workdir={workdir}", *arguments)


def test_another_vocabulary_is_refused(finished, tmp_path):
    cfg, workdir = finished
    other = cfg.copy_and_resolve_references()
    other.model.vocabulary = 310
    with pytest.raises(BadInput, match="vocabulary=310: the tokenizer has 300"):
        load_splits(from_config_dict(other), read_tokenizer(workdir))
    bytes_run = make_tiny_language()
    bytes_run.data.tokenizer = "bytes"
    with pytest.raises(BadInput, match="vocabulary=300: the tokenizer has 257.*set it to 257"):
        train(bytes_run, tmp_path)
    with pytest.raises(BadInput, match="data.tokenizer: 'bpe' in the workdir, 'bytes' given"):
        train(bytes_run, workdir)  # the workdir's own run comes before what its data would say
    record = workdir / "tokenizer.json"
    whole = record.read_text()
    record.unlink()
    with pytest.raises(BadInput, match="tokenizer.json is missing.*restore it"):
        train(cfg, workdir)
    record.write_text(json.dumps({"kind": "words"}))
    with pytest.raises(BadInput, match="is not the tokeniser of a run"):
        read_tokenizer(workdir)
    record.write_text(whole)


def test_a_classifier_run(opinions_dir, tmp_path, capsys, monkeypatch):
    cfg = make_tiny_sentences(opinions_dir)
    cfg.train_steps = 60
    cfg.model.dropout = 0.0
    cfg.optimizer.learning_rate = 1e-2
    train(cfg, tmp_path)
    last = read_metrics(tmp_path)[-1]
    assert last["test/accuracy"] == last["test/f1"] == 1.0  # one word tells the class
    assert any("train/sentences_per_sec" in line for line in read_metrics(tmp_path))
    model, variables = load_model(tmp_path, {"depth.solver": "bosh3", "depth.rtol": 1e-2})
    assert isinstance(model, TextClassifier) and model.config.depth.rtol == 1e-2
    assert jax.jit(model.apply)(variables, np.array([[1, 2, 3]])).shape == (1, 2)
    start(monkeypatch, evaluate, f"--workdir={tmp_path}", "--solvers=euler,bosh3")
    table = capsys.readouterr().out
    assert table.count("bosh3") == 2 and "F1" in table
    with pytest.raises(BadInput, match="'sentences': text is generated by runs of task 'language'"):
        start(monkeypatch, program, f"--workdir={tmp_path}", "--prompt=x")


def test_generate_as_a_user_starts_it(finished):
    _, workdir = finished
    done = run("train.generate", f"--workdir={workdir}", "--prompt=The", "--max_new_tokens=3")
    assert done.returncode == 0 and done.stdout.startswith("The"), done.stderr
    shown = run("train.generate", "--help")
    assert shown.returncode == 0 and "--top_p" in shown.stdout
    wrong = run("train.generate", f"--workdir={workdir}", "--prompt=The", "--top_p=2")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: top_p")


# By default tests/train/config/test_keys_act.py shows of every key that it acts.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["language", "sentences"])
def test_every_key_is_read(kind, opinions_dir, tmp_path):
    cfg = make_tiny_language() if kind == "language" else make_tiny_sentences(opinions_dir)
    cfg.train_steps = 3
    cfg.optimizer.schedule = "wsd"  # which alone reads decay_steps
    read, every = keys_read(lambda: train(cfg, tmp_path), cfg)
    assert every == read
