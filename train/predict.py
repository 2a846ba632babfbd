"""Says what a trained model sees in images, or reads in texts.

    python -m train.predict --workdir=runs/photos photos/new/*.jpg
    python -m train.predict --workdir=runs/photos --json picture.png
    python -m train.predict --workdir=runs/sst2 reviews.txt    # a text per line; - is the input

Images are read as the run's evaluation reads them. What cannot be read is reported, and the others
are predicted. Exit codes: 0 done, 1 some inputs could not be read, 2 bad input.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from train.startup import announce, note

announce(__name__)  # before what takes seconds to import

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from train import command_line
from train.checkpoint.predictor import Classifier, Prediction, make_predictor
from train.checkpoint.restore import verified_config
from train.checks import check_predicted, no_classes, reading_lines
from train.config.run import base_task
from train.errors import BadInput, RunError, warn
from train.files import expand

FLAGS = flags.FlagValues()
command_line.define_path("workdir", "Folder or gs:// address of the run.", FLAGS)
command_line.define_step(FLAGS)
flags.DEFINE_integer("top", 3, "How many classes are shown.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("json", False, "Print one JSON object per input.", flag_values=FLAGS)


def print_table(rows: Sequence[tuple[str, Prediction]], top: int, console: Console) -> None:
    """Prints the best classes of each input.

    Args:
      rows: an input's name or text, and what was predicted.
      top: how many classes are shown.
      console: where they are printed.
    """
    shown = min(top, len(rows[0][1].classes))
    table = Table()
    table.add_column("input", overflow="fold")
    for place in range(shown):
        table.add_column("best" if place == 0 else str(place + 1))

    for name, prediction in rows:
        best = [Text(f"{label} {share:.1%}") for label, share in prediction.best(top)]
        table.add_row(Text(name), *best)
    console.print(table)


def as_json(name: str, prediction: Prediction, top: int) -> str:
    """Returns {"input": ..., "classes": [{"class": ..., "probability": ...}, ...]}, best first."""
    best = [{"class": label, "probability": share} for label, share in prediction.best(top)]
    return json.dumps({"input": name, "classes": best}, ensure_ascii=False)


def read_inputs(
    classifier: Classifier, task: str, names: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Yields the name of each input and what `Classifier.read` returns, or the error in its place.

    Args:
      task: of the run, 'images' or 'sentences'.
      names: of files: an image each, or texts line by line.
    """
    for name in names:
        try:
            if task == "images":
                yield name, classifier.read(name)
            else:
                yield from ((line, classifier.read(line)) for line in _lines(name))
        except BadInput as error:
            yield name, error


def _lines(name: str) -> list[str]:
    """The lines of a file, or of standard input, that are not empty."""
    with reading_lines(name):
        if name == "-":
            text = sys.stdin.read()
        else:
            with open(expand(name), encoding="utf-8-sig") as file:
                text = file.read()
    return [line for line in text.splitlines() if line.strip()]


def main(argv: Sequence[str]) -> None:
    names: list[str] = []
    workdir, config = command_line.parse_run(argv, FLAGS, verified_config, names)
    if base_task(config.task) == "language":
        raise no_classes(workdir)
    check_predicted(names, config.task)

    note(f"restoring the weights of {workdir}")
    classifier = make_predictor(workdir, config, FLAGS.step)

    rows, errors = [], []
    for name, read in read_inputs(classifier, config.task, names):
        if isinstance(read, BadInput):
            errors.append(read)
            warn(str(read))
        else:
            rows.append((name, read))

    if not rows:
        raise BadInput("none of the inputs can be read: see above")

    note("compiling the model")
    predictions = classifier.classify([read for _, read in rows])
    predicted = [(name, p) for (name, _), p in zip(rows, predictions, strict=True)]
    if FLAGS.json:
        for name, prediction in predicted:
            print(as_json(name, prediction, FLAGS.top))
    else:
        print_table(predicted, FLAGS.top, Console())

    if errors:
        raise RunError(f"{len(errors)} of {len(errors) + len(rows)} inputs cannot be read")


if __name__ == "__main__":
    sys.exit(command_line.run(main, sys.argv, FLAGS, __doc__, "config"))
