"""The tables whose names a config may have; what the names stand for is said by their rooms."""

from train.registry import Table

# In train/optimizer.py: (OptimizerConfig, schedule) -> transformation of gradients, and
# (OptimizerConfig, steps after the warm-up) -> schedule.
OPTIMIZERS = Table("optimizer", ("adamw", "sgd", "lion", "adafactor", "muon"))
SCHEDULES = Table("schedule", ("cosine", "linear", "constant", "wsd"))
