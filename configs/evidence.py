"""The runs of docs/evidence.md: does FlexPool help, by how much, and which part of it?

    python launch.py --mode=sweep --config=configs/evidence.py:e0 --workdir=sweeps/evidence/e0
    python launch.py --mode=sweep --config=configs/evidence.py:e1,avg=RATE,flexpool=RATE \\
        --workdir=sweeps/evidence/e1

The argument contains the name of one of `DESIGNS` and, except for designs with fixed rates, the two
peak learning rates that E0 selected. The rate of avg is used for all pools without spatial weights,
and the rate of flexpool for all pools with spatial weights. The rates are arguments, so that this
file is the same before and after E0. docs/evidence.md is the protocol.
"""

from ml_collections import ConfigDict

from configs import paper_tables
from flexpool_jax.errors import UserError, unknown_name

_E0_RATES = ("0.003", "0.01", "0.03")

# Pools with spatial weights, which train at the rate of flexpool; all others train at that of avg.
_SPATIAL_POOLS = ("flexpool", "flexpool_shared", "gdconv")

# Designs with fixed rates, which take no rates in the argument.
WITHOUT_RATES = ("e0", "e0_paper", "e6_sgd")

_FASHION: dict[str, object] = {"datasets": ("fashion_mnist",), "overrides": "batch_size=125"}
_TINY: dict[str, object] = {"datasets": ("tiny_imagenet",), "overrides": "batch_size=250"}
# The path of an image folder is part of the config's digest, so it is the same on all machines.
_CIFAR10_JPEG: dict[str, object] = {
    "datasets": ("image_folder",),
    "overrides": "batch_size=125 dataset.raw_dir=data/cifar10-jpeg",
}
_TRAINING_LENGTH: dict[str, object] = {
    **_FASHION,
    "columns": ("avg", "flexpool", "flexpool+reg+dropout"),
    "seeds": (0, 1, 2),
}

# The sweeps by name. Each entry lists the differences from the defaults: ten epochs, one classifier
# and a probe of every run.
DESIGNS: dict[str, dict[str, object]] = {
    # Which peak rate? Measured on a tenth of the training images; test images are not used.
    "e0": {
        **_FASHION,
        "columns": tuple(
            f"{pool}+learning_rate={rate}" for pool in ("avg", "flexpool") for rate in _E0_RATES
        ),
        "seeds": (0, 1),
        "num_epochs": 3,
        "overrides": "batch_size=125 dataset.holdout=0.1",
        "probe": False,
    },
    # Does the paper's rate train at the paper's batch size?
    "e0_paper": {
        **_FASHION,
        "columns": ("avg", "flexpool"),
        "seeds": (0,),
        "overrides": "batch_size=1000 learning_rate=0.1 dataset.holdout=0.1",
        "probe": False,
    },
    # The primary experiment.
    "e1": {
        **_FASHION,
        "columns": ("avg", "avg+dropout", "flexpool", "flexpool+reg", "flexpool+reg+dropout"),
        "seeds": (0, 1, 2, 3, 4, 5),
    },
    # Colour images, with one classifier (e2) and with three (e3).
    "e2": {
        **_CIFAR10_JPEG,
        "columns": ("avg", "flexpool", "flexpool+reg"),
        "seeds": (0, 1, 2, 3, 4),
    },
    "e3": {
        **_CIFAR10_JPEG,
        "columns": ("avg", "flexpool+reg"),
        "sac": ("on",),
        "seeds": (0, 1, 2, 3, 4),
    },
    # Which part of FlexPool? In the last column, w_fp has 1/49 of the learning rate. With 7×7
    # positions w_fp starts at 1/49, so its relative change is that of a weight that starts at 1 and
    # has the full rate.
    "e4": {
        **_FASHION,
        "columns": (
            "channel_scale",
            "flexpool_shared",
            "gdconv",
            "flatten",
            "flexpool+pool_learning_rate_scale=0.0204",
        ),
        "seeds": (0, 1, 2),
    },
    # The data set with the largest gain in the paper (with SAC).
    "e5": {
        **_TINY,
        "columns": ("avg", "avg+dropout", "flexpool+reg+dropout"),
        "seeds": (0, 1, 2),
    },
    "e5_sac": {
        **_TINY,
        "columns": ("avg", "flexpool+reg+dropout"),
        "sac": ("on",),
        "seeds": (0, 1, 2),
    },
    # Added later, because of E5's results: FlexPool there without dropout.
    "e7": {**_TINY, "columns": ("flexpool+reg",), "seeds": (0, 1, 2)},
    # Does the difference shrink with training? Ten epochs are in E1.
    "e6_2": {**_TRAINING_LENGTH, "num_epochs": 2},
    "e6_5": {**_TRAINING_LENGTH, "num_epochs": 5},
    "e6_20": {**_TRAINING_LENGTH, "num_epochs": 20},
    # And with SGD in place of Adam? The rate is that of He et al. 2015.
    "e6_sgd": {
        **_TRAINING_LENGTH,
        "overrides": "batch_size=125 optimizer.name=sgd learning_rate=0.1 schedule=cosine "
        "optimizer.weight_decay=5e-4 label_smoothing=0.1",
    },
}


def get_config(argument: str) -> ConfigDict:
    """Returns one sweep of docs/evidence.md.

    Args:
        argument: "NAME" for a design with fixed rates, else "NAME,avg=RATE,flexpool=RATE".

    Raises:
        UserError: The design is unknown, or rates are missing, not allowed or not numbers.

    Example:
        >>> get_config("e1,avg=0.003,flexpool=0.01").columns[:3]
        ('avg+learning_rate=0.003', 'avg+dropout+learning_rate=0.003', \
'flexpool+learning_rate=0.01')
        >>> config = get_config("e1,avg=0.01,flexpool=0.01")  # one rate: all columns share it
        >>> config.columns[:3], config.overrides
        (('avg', 'avg+dropout', 'flexpool'), 'tensorboard=False batch_size=125 learning_rate=0.01')
    """
    name, *rest = (word.strip() for word in argument.split(","))
    if name not in DESIGNS:
        raise unknown_name("design", name, DESIGNS)
    config = paper_tables.get_config()
    config.sac = ("off",)
    config.num_epochs = 10
    config.probe = True
    config.update(DESIGNS[name])
    config.overrides = f"tensorboard=False {config.overrides}"

    if name in WITHOUT_RATES:
        if rest:
            raise UserError(f"{argument!r} gives rates, but {name} has its own; allowed: {name}")
        return config
    avg, flexpool = _rates(argument, name, rest)
    if avg == flexpool:
        config.overrides += f" learning_rate={avg:g}"
    else:
        config.columns = tuple(
            f"{column}+learning_rate={flexpool if _is_spatial(column) else avg:g}"
            for column in config.columns
        )
    return config


def _rates(argument: str, name: str, words: list[str]) -> tuple[float, float]:
    """Returns the rates of avg and flexpool from "avg=RATE" and "flexpool=RATE", in any order."""
    rates = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        if len(words) == 2 and rates.keys() == {"avg", "flexpool"}:
            return float(rates["avg"]), float(rates["flexpool"])
    except ValueError:
        pass
    raise UserError(
        f"{argument!r} does not give the two peak rates that E0 selected; allowed: "
        f"{name},avg=RATE,flexpool=RATE, e.g. {name},avg=0.01,flexpool=0.01"
    )


def _is_spatial(column: str) -> bool:
    return column.split("+")[0] in _SPATIAL_POOLS
