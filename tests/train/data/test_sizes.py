"""What configs leave out for the sake of a user's own texts."""

import pytest

from configs import digits, pydocs, texts
from train.config.border import from_config_dict
from train.data.sizes import with_sizes
from train.data.sources import load_splits


def test_the_sizes_follow_from_the_texts(tmp_path):
    (tmp_path / "a.txt").write_text("a line of text\n" * 1000)
    cfg = texts.get_config()
    cfg.data.files = str(tmp_path)
    for text, block, batch, steps in (("", 64, 16, 877), ("short", 16, 8, 300)):
        if text:
            (tmp_path / "a.txt").write_text("a line of text\n" * 40)
        found = with_sizes(cfg, {})
        assert found == {
            "model.block_size": block,
            "batch_size": batch,
            "train_steps": steps,
            "optimizer.warmup_steps": min(100, steps // 10),
        }
        config = from_config_dict(cfg, found)
        assert len(load_splits(config)["train"]) >= config.batch_size

    given = {"train_steps": 20, "model.block_size": 32}
    assert with_sizes(cfg, given) == given | {"batch_size": 4, "optimizer.warmup_steps": 2}


@pytest.mark.parametrize("value", [{"a": 7}, {}])
def test_a_mapping_in_place_of_a_value_is_left_to_be_refused(tmp_path, value):
    (tmp_path / "a.txt").write_text("a few words " * 400)
    given = {"data": {"name": "files", "files": str(tmp_path / "a.txt")}}
    found = with_sizes(given | {"optimizer": {"warmup_steps": value}}, {})
    assert "batch_size" in found and "optimizer.warmup_steps" not in found
    assert "optimizer.warmup_steps" in with_sizes(given | {"optimizer": {}}, {})
    assert with_sizes(given | {"optimizer": 7}, {}).keys() == found.keys()


@pytest.mark.parametrize("name", [[7, 7], {"a": 7}, None])
def test_a_data_set_that_is_no_name_is_left_to_be_refused(name):
    assert with_sizes({"data": {"name": name, "files": "x.txt"}}, {"seed": 1}) == {"seed": 1}


def test_what_a_config_says_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    cfg = pydocs.get_config()
    cfg.data.update(name="files", files=str(tmp_path))
    assert with_sizes(cfg, {"seed": 1}) == {"seed": 1}
    assert with_sizes(digits.get_config(), {"seed": 1}) == {"seed": 1}
