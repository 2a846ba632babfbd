"""The progress of a run for people: a bar on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress:
    """Shows the step, the newest metrics and the time left."""

    def __init__(self, start_step: int, train_steps: int, visible: bool = True):
        self._console = Console(quiet=not visible)
        self._train_steps = train_steps

        # Disabled, and not only unseen: a bar redirects standard output and error.
        is_shown = visible and self._console.is_terminal
        columns = [
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(*columns, console=self._console, disable=not is_shown)
        self._task = self._bar.add_task("", completed=start_step, total=train_steps, metrics="")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Notes that `step` steps are done."""
        self._bar.update(self._task, completed=step)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows training metrics: on the bar, or as a line if there is no terminal."""
        text = describe(metrics)
        self._bar.update(self._task, metrics=text)

        if not self._console.is_terminal:
            self.note(f"step {step:>6}/{self._train_steps}  {text}")

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        # Standard output may be a file on a full disk.
        with contextlib.suppress(OSError):
            # Without markup, which brackets in the name of a class would be taken for.
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(metrics: Mapping[str, float]) -> str:
    """Returns 'loss 0.1234  accuracy 97.5 %  4321 images/s' of metrics named '<split>/<name>'."""
    forms = {
        "loss": "loss {:.4f}",
        "accuracy": "accuracy {:.1%}",
        "f1": "F1 {:.1%}",
        "perplexity": "perplexity {:.2f}",
        "bits_per_byte": "{:.3f} bits per byte",
        "images_per_sec": "{:,.0f} images/s",
        "sentences_per_sec": "{:,.0f} sentences/s",
        "tokens_per_sec": "{:,.0f} tokens/s",
        "mfu": "MFU {:.1%}",
    }

    # The table's order, whatever the metrics' own; one that is not in the table is left out.
    by_name = {name.rpartition("/")[2]: value for name, value in metrics.items()}
    return "  ".join(form.format(by_name[name]) for name, form in forms.items() if name in by_name)
