"""Which keys of a config an action reads."""

import sys
from dataclasses import fields, is_dataclass

from train.config.border import from_config_dict


def keys_read(action, cfg):
    """The fields of a config's dataclasses that the library and the trainer read in an action."""
    read, originals = set(), {}
    config = from_config_dict(cfg)
    classes = {type(config), type(config.model.depth)}
    for name in ("data", "model", "optimizer", "regularise", "mesh", "checkpoint", "eval", "log"):
        classes.add(type(getattr(config, name)))
    classes |= {type(group) for group in vars(config.data).values() if is_dataclass(group)}

    def recording(cls, original):
        names = {field.name for field in fields(cls)}

        def read_field(self, name):
            caller = sys._getframe(1).f_code
            generic = caller.co_name in (
                "__post_init__",
                "_asdict_inner",
                "__eq__",
                "__hash__",
                "replace",
                "_replace",
            )
            generic = generic or "/train/config/" in caller.co_filename
            if name in names and not generic:
                read.add(f"{cls.__name__}.{name}")
            return original(self, name)

        return read_field

    for cls in classes:
        originals[cls] = cls.__getattribute__
        cls.__getattribute__ = recording(cls, cls.__getattribute__)
    try:
        action()
    finally:
        for cls in classes:
            del cls.__getattribute__
    every = {f"{cls.__name__}.{field.name}" for cls in classes for field in fields(cls)}
    return read, every
