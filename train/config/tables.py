"""The tables whose names a config may have; what the names stand for is said by their rooms."""

from train.config.registry import Table

# In train/optimizer.py: (OptimizerConfig, schedule) -> transformation of gradients, and
# (OptimizerConfig, steps after the warm-up) -> schedule.
OPTIMIZERS = Table("optimizer", ("adamw", "sgd", "lion", "adafactor", "muon"))
SCHEDULES = Table("schedule", ("cosine", "linear", "constant", "wsd"))

# In train/data/: the group `data` of the config -> the splits 'train', 'validation' and 'test'.
# Other names are those of tensorflow-datasets.
IMAGE_SETS = Table("set of images", ("digits",), reserved=("folder",))
DOCUMENT_SETS = Table("set of documents", ("pydocs", "files"))
SENTENCE_SETS = Table("set of sentences", ("folder",))

# In train/tasks/: (RunConfig, split) -> task. Its other half, what a run of it is configured by, is
# TASKS in train/config/run.py.
TASK_CLASSES = Table("task", ("images", "language", "sentences"))


# In addition to what a task measures by itself, whose names are not free: (logits, batch) -> a
# score of each example. SIGNS: 1 where more of it is better, -1 where less is.
METRICS = Table(
    "metric",
    reserved=(
        *("loss", "accuracy", "correct", "label", "f1", "perplexity", "bits_per_byte"),
        *("nfe", "failed", "failed_solves", "index", "tokens", "bytes"),
        *("reversible_gap", "reversible_error"),
    ),
)
SIGNS: dict[str, int] = {}
