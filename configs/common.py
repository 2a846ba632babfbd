"""What the configs share."""

from typing import Any

import ml_collections
from ml_collections import config_dict

BYTES = 257  # the vocabulary of the byte tokeniser: 256 bytes and the end of text
Config = Any  # a ConfigDict, whose attributes no type checker knows

_SIZES = {  # as odeformer.presets has them, which a test compares
    "deit_ti": dict(width=192, heads=3, mlp=768),
    "deit_s": dict(width=384, heads=6, mlp=1536),
    "vit_b": dict(width=768, heads=12, mlp=3072),
    "vit_l": dict(width=1024, heads=16, mlp=4096),
}


DEIT_AUGMENT = dict(  # Touvron et al. 2021, arXiv 2012.12877, but for the crop
    flip=True,
    randaugment_ops=2,
    randaugment_magnitude=9.0,
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
)


def parse(argument: str | None, **accepted: tuple[str, ...]) -> Config:
    """Returns the choices of a config's argument, as in `cifar.py:dataset=cifar100,size=cpu`.

    Args:
      argument: what stands behind the colon: name=value pairs.
      **accepted: the values of each name; the first is the default.

    Raises:
      ValueError: a name or a value that is not accepted.
    """
    choices = {name: values[0] for name, values in accepted.items()}
    for pair in filter(None, (argument or "").split(",")):
        name, _, value = pair.partition("=")
        if name not in accepted:
            raise ValueError(f"unknown name in {pair!r}; accepted: {', '.join(accepted)}")
        if value not in accepted[name]:
            raise ValueError(f"unknown value in {pair!r}; accepted: {', '.join(accepted[name])}")
        choices[name] = value
    return ml_collections.ConfigDict(choices)


def get_model(variant: str | None = None, **changes: Any) -> Config:
    """Returns the keys of `model`: a vision transformer of the variant's size, 32 px, patch 4."""
    model = ml_collections.ConfigDict(
        dict(
            image_size=32,
            patch_size=4,
            channels=3,
            classes=10,
            width=192,
            heads=3,
            mlp=768,
            dropout=0.0,
            drop_path=0.0,
            dtype="float32",
            pool="token",
            positions="learned",
            time="none",
            fused=False,
            attention="auto",
        )
    )
    model.update(_SIZES[variant] if variant else {})
    model.update(changes)
    return model


def get_optimizer(**changes: Any) -> Config:
    """Returns the keys of `optimizer`."""
    optimizer = ml_collections.ConfigDict(
        dict(
            learning_rate=1e-3,
            warmup_steps=100,
            weight_decay=0.05,
            b1=0.9,
            b2=0.999,
            clip_norm=config_dict.placeholder(float),
            ema_decay=config_dict.placeholder(float),
            label_smoothing=0.0,
        )
    )
    optimizer.update(changes)
    return optimizer


def get_run(train_steps: int, batch_size: int, task: str = "images") -> Config:
    """Returns a run's other keys; it is evaluated and saved ten times, and logged a hundred."""
    cfg = ml_collections.ConfigDict()
    cfg.task = task
    cfg.seed = 0
    cfg.train_steps = train_steps
    cfg.batch_size = batch_size
    cfg.mesh = dict(data=-1, fsdp=1, tensor=1)
    cfg.parallel = dict(mode="jit", accumulate=1)
    cfg.checkpoint = dict(
        every_steps=max(train_steps // 10, 1),
        keep=2,
        best="val/loss",
        spare_dir=config_dict.placeholder(str),
    )
    cfg.guard = dict(sigmas=config_dict.placeholder(float), in_a_row=10, returns=3)
    cfg.eval = dict(every_steps=max(train_steps // 10, 1), batch_size=1000)
    cfg.log = dict(every_steps=max(train_steps // 100, 1))
    return cfg


def get_depth(**changes: Any) -> Config:
    """Returns the keys of `depth`; None where the library's default or nothing applies."""
    depth = ml_collections.ConfigDict(
        dict(
            layers=12,
            share=1,
            solver="euler",
            steps=config_dict.placeholder(int),
            rtol=config_dict.placeholder(float),
            atol=config_dict.placeholder(float),
            max_steps=config_dict.placeholder(int),
            per_sample=False,
            adjoint="checkpoint",
            policy=config_dict.placeholder(str),
        )
    )
    depth.update(changes)
    return depth


def get_augment(**changes: Any) -> Config:
    """Returns the keys of `data.augment`: all off but the changes."""
    augment = ml_collections.ConfigDict(
        dict(
            shift_px=0.0,
            rotate_degrees=0.0,
            zoom=0.0,
            crop_padding_px=0,
            crop_min_area=0.0,
            flip=False,
            randaugment_ops=0,
            randaugment_magnitude=9.0,
            erasing=0.0,
            mixup=0.0,
            cutmix=0.0,
        )
    )
    augment.update(changes)
    return augment


def get_data(name: str, **augment: Any) -> Config:
    """Returns the keys of `data` for the set of that name, with that augmentation."""
    return ml_collections.ConfigDict(
        dict(
            name=name,
            data_dir=config_dict.placeholder(str),
            fold=config_dict.placeholder(int),
            validation=0,
            test_fraction=0.0,
            repeats=1,
            workers=0,
            skip_corrupt=False,
            augment=get_augment(**augment),
        )
    )


def get_lm(**changes: Any) -> Config:
    """Returns the keys of `model` of a language model: nanoGPT's small one, over bytes."""
    model = _get_tokens()
    model.tied = True
    model.update(changes)
    return model


def get_text(**changes: Any) -> Config:
    """Returns the keys of `model` of a text classifier, of text_small's sizes."""
    model = _get_tokens(vocabulary=16_000, block_size=64, width=128, heads=4, mlp=256)
    model.update(classes=2, pool="mean")
    model.update(changes)
    return model


def _get_tokens(**changes: Any) -> Config:
    """The keys of `model` that language models and text classifiers share."""
    model = ml_collections.ConfigDict(
        dict(
            vocabulary=BYTES,
            block_size=256,
            width=384,
            heads=6,
            mlp=1536,
            dropout=0.0,
            drop_path=0.0,
            dtype="float32",
            positions="rotary",
            time="none",
            fused=False,
            attention="auto",
        )
    )
    model.update(changes)
    return model


def get_documents(name: str, **changes: Any) -> Config:
    """Returns the keys of `data` of a language model for the set of that name."""
    data = ml_collections.ConfigDict(
        dict(
            name=name,
            data_dir=config_dict.placeholder(str),
            files=config_dict.placeholder(str),
            text_key=config_dict.placeholder(str),
            held_out=0.05,
            tokenizer="bytes",
            packing="documents",
        )
    )
    data.update(changes)
    return data


def get_sentences(name: str, **changes: Any) -> Config:
    """Returns the keys of `data` of a text classifier for the set of that name."""
    data = ml_collections.ConfigDict(
        dict(
            name=name,
            data_dir=config_dict.placeholder(str),
            text_key=config_dict.placeholder(str),
            label_key="label",
            held_out=0.1,
            tokenizer="bpe",
            token_dropout=0.0,
        )
    )
    data.update(changes)
    return data


def get_solver_study(config: Config) -> Config:
    """Returns the paper's study of a model of 12 layers, over three seeds.

    Four solvers with weights shared over 1 to 12 layers, and sequential and parallel models of the
    FLOPs of the RK4 ones.
    """
    study: Config = ml_collections.ConfigDict()
    study.config = config
    study.grid = dict(
        depth=dict(share=(1, 2, 3, 4, 6, 12), solver=("lie_trotter", "euler", "midpoint", "rk4"))
    )
    study.matched = dict(row="rk4", by="flops", solvers=("lie_trotter", "euler"))
    study.folds = None
    study.seeds = (0, 1, 2)
    return study


def get_digits(**depth: Any) -> Config:
    """Returns a run on scikit-learn's 8x8 digits, of that depth.

    Augmentation, learning rate, steps and sizes were chosen by the validation split alone.
    """
    cfg = get_run(train_steps=1800, batch_size=64)
    cfg.data = get_data("digits", shift_px=0.5, rotate_degrees=10.0, zoom=0.1)
    cfg.model = get_model(
        image_size=8, patch_size=2, channels=1, width=64, heads=4, mlp=128, pool="mean"
    )
    cfg.depth = get_depth(**depth)
    cfg.optimizer = get_optimizer(learning_rate=3e-3, b2=0.99, clip_norm=1.0, ema_decay=0.99)
    cfg.checkpoint.every_steps = 600
    cfg.eval.update(every_steps=300, batch_size=360)
    cfg.log.every_steps = 100
    return cfg
