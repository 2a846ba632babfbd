"""The sections, in order of worth, and how long each may take."""

import importlib
from typing import Any, NamedTuple

CORE = ("jax", "jaxlib", "flax", "diffrax", "optax")


class Section(NamedTuple):
    """A section.

    Attributes:
      name: as --sections takes it.
      title: what it is about.
      limit_secs: how long it may take, compilation and the start of its process included, unless
        an earlier section left some of its own time.
      module: of this package, whose `run` measures it.
      framework: 'jax', 'torch', or 'train' where the trainer runs in processes of its own.
      packages: whose versions are recorded with each row.
      function: of the module.
      is_timed: whether it measures time.
    """

    name: str
    title: str
    limit_secs: int
    module: str
    framework: str
    packages: tuple[str, ...]
    function: str = "run"
    is_timed: bool = True

    @property
    def trains(self) -> bool:
        """Whether it runs the trainer, which needs further packages, and data."""
        return self.framework == "train"

    def load(self) -> Any:
        """Returns the function (rows, tiny, ...) that measures the section."""
        module = importlib.import_module(f"benchmarks.accelerator.{self.module}")
        return getattr(module, self.function)


_TORCH = ("torch", "timm", "torchdiffeq")
_TRAIN = (*CORE, "tensorflow-datasets", "grain", "orbax-checkpoint")

# Compiling takes most of the time on a GPU: about 10 s a program on an H100, which
# chooses kernels by trying them out. From utilisation on, the limits are estimates.
SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        Section("card", "1. The card", 20, "card", "jax", CORE),
        Section("truth", "2. Truth", 150, "truth", "jax", CORE, is_timed=False),
        Section("overhead", "3. Overhead", 260, "overhead", "jax", CORE),
        Section("kernels", "3b. Where a step's time goes", 60, "kernels", "jax", CORE),
        Section("rivals", "4. Against PyTorch", 75, "rivals", "torch", _TORCH),
        Section("utilisation", "5. Utilisation", 150, "utilisation", "jax", CORE),
        Section("decoding", "6. Decoding", 100, "decoding", "jax", CORE),
        Section(
            "static_cache",
            "6b. Decoding by transformers",
            120,
            "static_cache",
            "torch",
            ("torch", "transformers"),
        ),
        Section("trainer", "7. The trainer", 130, "trainer", "train", _TRAIN, "run_trainer"),
        Section("probe", "8. CIFAR-10, a probe", 230, "trainer", "train", _TRAIN, "run_probe"),
        Section(
            "shakespeare",
            "9. Tiny Shakespeare",
            130,
            "trainer",
            "train",
            _TRAIN,
            "run_shakespeare",
        ),
        # A call of its own, and with fewer epochs where it would not end in it.
        Section("study", "10. The paper's claims on CIFAR-10", 570, "study", "train", _TRAIN),
    )
}
