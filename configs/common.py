"""What the configs share. A config says what differs from the defaults, which --help lists."""

from typing import Any

import ml_collections

Config = Any  # a ConfigDict, whose attributes no type checker knows

GROUPS = (
    *("data", "model", "depth", "init", "lora", "optimizer", "regularise", "mesh", "parallel"),
    *("checkpoint", "guard", "eval", "log"),
)

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
      argument: what follows the colon: name=value pairs.
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


def get_run(task: str, train_steps: int | None = None, batch_size: int | None = None) -> Config:
    """Returns a run's config with every group of keys, still empty: all else is at its default.

    Args:
      task: what is learnt.
      train_steps: None to leave them out: they follow from the user's own files.
      batch_size: None to leave it out, too.
    """
    cfg: Config = ml_collections.ConfigDict({group: {} for group in GROUPS})
    given = dict(task=task, train_steps=train_steps, batch_size=batch_size)
    cfg.update({key: value for key, value in given.items() if value is not None})
    if task == "images":
        cfg.data.augment = {}
    return cfg


def get_digits(**depth: Any) -> Config:
    """Returns a run on scikit-learn's 8x8 digits, of that depth.

    Augmentation, learning rate, steps and sizes were chosen by the validation split alone.
    """
    cfg = get_run("images", train_steps=1800, batch_size=64)
    cfg.data.name = "digits"
    cfg.data.augment = dict(shift_px=0.5, rotate_degrees=10.0, zoom=0.1)

    cfg.model.preset = "digits"
    cfg.depth.update(depth)
    cfg.optimizer.update(learning_rate=3e-3, b2=0.99, clip_norm=1.0, ema_decay=0.99)

    cfg.checkpoint.every_steps = 600
    cfg.eval.update(every_steps=300, batch_size=360)
    cfg.log.every_steps = 100
    return cfg


def get_study(config: Config, depth: dict[str, tuple[Any, ...]]) -> Config:
    """Returns a study of a run's config under several depths, over three seeds."""
    study: Config = ml_collections.ConfigDict()
    study.config = config
    study.grid = dict(depth=depth)
    study.seeds = (0, 1, 2)
    return study


def get_small_digits(**depth: Any) -> Config:
    """Returns the digits' run of a cross-validation on a CPU: of width 32, for 400 steps."""
    config = get_digits(**depth)
    config.train_steps = 400
    config.data.validation_examples = 200
    config.model.update(width=32, heads=2, mlp=64)

    # Longer than any run: scored and saved at its end.
    config.checkpoint.update(every_steps=800, keep=1)

    # Validation (200) and test (320 or 319) have batches of one size: one program scores both.
    config.eval.update(every_steps=800, batch_size=40)
    config.log.every_steps = 50
    return config


def get_folds_study(config: Config) -> Config:
    """Returns a study by five folds and two seeds, of 400 and 800 steps, its grid still missing."""
    study: Config = ml_collections.ConfigDict()
    study.config = config
    repeat_over_folds(study)
    return study


def repeat_over_folds(study: Config) -> None:
    """Repeats a study of digits over five folds and two seeds, for 400 and 800 steps."""
    study.folds = 5
    study.seeds = (0, 1)
    study.lengths = (400, 800)
    study.tune = dict(
        grid=dict(optimizer=dict(learning_rate=(4.5e-3, 9e-3))), steps=200, seeds=(900,)
    )
    study.margin = 1.5


CENTRED = "centred attention helps"


def get_centred_study(config: Config, layers: int) -> Config:
    """Returns a study of centred attention, of a flow of that many layers and of one four times it.

    Each with and without centring: layers with weights of their own, four times as many of these,
    and four times as many steps over one shared set, once as unit layers, which is a longer flow,
    and once as quarter steps of the short one.
    """
    deep, centre = 4 * layers, dict(centre=(0.0, 1.0))
    depths = (
        dict(layers=(layers,), share=(1,)),
        dict(layers=(deep,), share=(1,)),
        dict(layers=(deep,), share=(deep,)),
        dict(layers=(layers,), share=(layers,), steps=(deep,)),
    )

    study: Config = ml_collections.ConfigDict()
    study.config = config
    study.grid = [dict(depth=depth, model=centre) for depth in depths]
    study.seeds = (0, 1, 2)

    names = (
        f"share 1, layers {layers}",
        f"share 1, layers {deep}",
        f"share {deep}, layers {deep}",
        f"share {layers}, layers {layers}, steps {deep}",
    )
    solver = config.depth.solver
    study.contrasts = tuple(
        (CENTRED, f"{solver}, {name}, centre 1.0", f"{solver}, {name}, centre 0.0")
        for name in names
    )
    return study


PARALLEL = "parallel sublayers beat sequential ones"
HIGHER = "a higher-order solver beats the parallel layer"
SHARED = "sharing weights costs accuracy"


def get_contrasts(shares: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """Returns the paper's claims on rows of four solvers: (claim, row, baseline[, 'worse'])."""
    contrasts = []
    for share in shares:
        parallel = f"euler, share {share}"
        contrasts.append((PARALLEL, parallel, f"lie_trotter, share {share}"))
        contrasts += [
            (HIGHER, f"{solver}, share {share}", parallel) for solver in ("midpoint", "rk4")
        ]

    contrasts += [
        (SHARED, f"{solver}, share {share}", f"{solver}, share 1", "worse")
        for solver in ("lie_trotter", "euler")
        for share in shares
        if share > 1
    ]
    return tuple(contrasts)


def get_solver_study(config: Config) -> Config:
    """Returns the paper's study of a model of 12 layers, over three seeds.

    Four solvers with weights shared over 1 to 12 layers, and sequential and parallel models that
    take the RK4 ones' evaluations in smaller steps. Its contrasts are those of `find_claims`.
    """
    study = get_study(
        config,
        depth=dict(share=(1, 2, 3, 4, 6, 12), solver=("lie_trotter", "euler", "midpoint", "rk4")),
    )
    study.matched = dict(row="rk4", by="nfe", solvers=("lie_trotter", "euler"))
    return study
