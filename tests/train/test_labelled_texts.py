"""A run on a folder of labelled texts: trained, resumed, evaluated, and used."""

import json
import shutil

import pytest

from configs import folder, labelled_texts, texts
from tests.helpers.notes import make_notes, note
from tests.helpers.programs import start
from train import evaluate, predict
from train.checkpoint.metadata import read_metadata
from train.checkpoint.workdir import read_config, read_inputs
from train.data.text.documents import load_sentences
from train.errors import BadInput
from train.logs.metrics import read_metrics, read_scores
from train.loop import train
from train.programs import Programs


def config_of(root):
    """What a user gives, in a run of seconds."""
    cfg = labelled_texts.get_config()
    cfg.data.files = str(root / "notes")
    cfg.update(train_steps=4, batch_size=8)
    cfg.model.update(width=16, heads=2, mlp=32)
    cfg.depth.layers = 1
    cfg.optimizer.update(learning_rate=0.1)
    cfg.checkpoint.every_steps = cfg.eval.every_steps = 2
    return cfg


def test_a_folder_of_texts_from_training_to_use(tmp_path, capsys, monkeypatch):
    notes, workdir = make_notes(tmp_path / "notes"), tmp_path / "run"
    (notes / "bad" / "broken.txt").write_bytes(b"\xff")
    programs = Programs()
    train(config_of(tmp_path), workdir, programs=programs)
    told = capsys.readouterr()
    assert "bad/broken.txt cannot be read as a text" in told.err
    assert "2 classes: bad 8, good 14" in told.out
    assert "'good', the majority, has 63.6% of the examples" in told.out.replace("\n", " ")
    assert "texts of up to 32 tokens of 260" in told.out
    assert "test/accuracy" in read_metrics(workdir)[-1]
    inputs = read_inputs(workdir)
    assert inputs.classes == ("bad", "good") and inputs.origin["files"] == {"bad": 8, "good": 14}

    # It stopped after step 2; sizes are those of the run, not what another folder would suggest.
    resumed = shutil.copytree(workdir, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "4")
    more = notes / "bad" / "more.txt"
    more.write_text(" ".join(map(str, range(999))))
    with pytest.raises(BadInput, match="folder of texts has changed .*'bad' had 8 texts and has 9"):
        train(config_of(tmp_path), resumed)
    more.unlink()
    (notes / "good" / "good000.txt").write_text("other")
    with pytest.raises(BadInput, match="texts has changed .*: a file has another name, content"):
        train(config_of(tmp_path), resumed)
    (notes / "good" / "good000.txt").write_text(note("good", 0))
    train(config_of(tmp_path), resumed, programs=programs)
    assert read_config(resumed) == read_config(workdir)
    assert "resumed at step 2" in capsys.readouterr().out.replace("\n", " ")
    was, now = (read_metadata(run, 4) for run in (workdir, resumed))
    assert now.leaves == was.leaves and now.inputs == was.inputs is not None

    # Its programs say of the texts that it tested on what the test said.
    start(monkeypatch, evaluate, f"--workdir={workdir}")
    printed = capsys.readouterr().out
    assert "accuracy by class" in printed and "good" in printed
    lines = load_sentences(read_config(workdir).data)["test"].texts
    (tmp_path / "new.txt").write_text("\n".join(lines))
    start(monkeypatch, predict, f"--workdir={workdir}", "--json", str(tmp_path / "new.txt"))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["input"] for one in found] == lines
    predicted = read_scores(workdir)["predicted"].astype(int)
    assert [one["classes"][0]["class"] for one in found] == [
        inputs.classes[label] for label in predicted
    ]

    for other in (texts, folder):
        cfg = other.get_config()
        cfg.data.files = str(notes)
        with pytest.raises(BadInput, match="'sentences' in the workdir"):
            train(cfg, workdir)
