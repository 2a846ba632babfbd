"""Writes a trained run for other programs: its weights in two layouts, or the whole program.

    python -m train.export --workdir=runs/photos --to=huggingface --out=exported
    python -m train.export --workdir=runs/photos --to=safetensors --out=exported
    python -m train.export --workdir=runs/photos --to=stablehlo --out=exported --platforms=cpu,cuda

huggingface is the layout of the library transformers; a model that has no place in it is refused by
the key. safetensors holds every model, under our own names. stablehlo is a program that jax.export
reads, for any batch size, with a manifest and an example that runs it without this project.
Exit codes: 0 done, 2 bad input.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

from absl import flags

from train import command_line
from train.checkpoint.restore import verified_config
from train.config.run import base_task
from train.devices.checks import check_model_fits
from train.devices.mesh import one_device_mesh
from train.errors import warn
from train.export.checks import (
    check_attention,
    check_batch,
    check_form,
    check_options,
    check_out,
    check_place,
    check_platforms,
    check_program_packages,
    writing_folder,
)
from train.export.program import PLACES, PLATFORMS, write_program
from train.export.weights import Trained, load_trained, write_huggingface, write_safetensors

FORMS = ("huggingface", "safetensors", "stablehlo")

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run.", FLAGS)
command_line.define_step(FLAGS)
flags.DEFINE_string("to", None, f"One of {', '.join(FORMS)}.", flag_values=FLAGS)
command_line.define_path("out", "Folder to write; empty, or not there yet.", FLAGS)
flags.DEFINE_list(
    "platforms",
    None,
    f"What a program is for, of {','.join(PLATFORMS)}; by default all.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "weights",
    None,
    f"Where a program's weights are: {' or '.join(PLACES)} it; by default inside.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "batch", None, "The one batch size that a program takes; by default any.", flag_values=FLAGS
)


def write_stablehlo(out: pathlib.Path, run: Trained) -> None:
    """Writes a run as a program, as the flags say."""
    write_program(
        out,
        run.config.model,
        run.params,
        json.loads(run.inputs_json),
        tokenizer=None if run.tokenizer is None else run.tokenizer.to_json(),
        platforms=FLAGS.platforms or PLATFORMS,
        weights=FLAGS.weights or "inside",
        batch=FLAGS.batch,
    )


def main(argv: Sequence[str]) -> None:
    workdir, config = command_line.parse_run(argv, FLAGS, verified_config)
    form, out = check_form(FLAGS.to, FORMS), check_out(FLAGS.out)
    options = {name: FLAGS[name].value for name in ("platforms", "weights", "batch")}
    check_options(form, options)
    check_place(FLAGS.weights or "inside", PLACES)
    check_platforms(PLATFORMS if FLAGS.platforms is None else FLAGS.platforms, PLATFORMS)
    check_batch(FLAGS.batch)
    if form == "stablehlo":
        check_attention(config.model.attention)
        check_program_packages()
    check_model_fits(config.model, one_device_mesh())

    own, like = config.task, base_task(config.task)
    if form != "safetensors" and own != like:
        warn(
            f"what is written says how inputs of task {like!r} are prepared, and not what `inputs` "
            f"of your own task {own!r} does"
        )

    note(f"restoring the weights of {workdir}")
    run = load_trained(workdir, config, FLAGS.step)

    note(f"writing {out}")
    with writing_folder(out):
        if form == "huggingface":
            write_huggingface(out, run)
        elif form == "safetensors":
            write_safetensors(out, run)
        else:
            write_stablehlo(out, run)

    print(f"{out}: {', '.join(sorted(entry.name for entry in out.iterdir()))}")


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
