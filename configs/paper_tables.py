"""Tables 1 and 2 of the paper: four data sets, four columns, with and without SAC, five seeds.

    python launch.py --mode=sweep --config=configs/paper_tables.py --workdir=sweeps/paper
    python launch.py --mode=report --workdir=sweeps/paper

160 runs in the paper's settings, which want GPUs. Fields narrow it; what is finished is not run
again, and so a sweep can be widened later:

    python launch.py --mode=sweep --config=configs/paper_tables.py --workdir=sweeps/digits \\
        --config.datasets=digits --config.seeds=0,1
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the sweep over both tables. Its runs are those of configs/<dataset>.py."""
    config = ConfigDict()
    # Rows, in the order of the tables ("ImageNet" there is Tiny ImageNet): files of this folder.
    config.datasets = ("cifar10", "fashion_mnist", "cifar100", "tiny_imagenet")
    # Columns: what stands after the colon of a data set's config, joined by + instead of commas:
    # avg+dropout, flexpool+reg=0.01, flexpool+pool_learning_rate_scale=0.02.
    config.columns = ("avg", "flexpool", "flexpool+reg", "flexpool+reg+dropout")
    # Table 1 is "off". Table 2 is "on": the weights of the data set's config, 0.1, 0.2 and 0.7.
    # Other weights of Eq. 3 are written with slashes: 0.05/0.1/0.85.
    config.sac = ("off", "on")
    # The paper does not say how many runs its numbers are from. Five give an interval.
    config.seeds = (0, 1, 2, 3, 4)
    # 0: as each data set's config has it, 100 for those of the paper.
    config.num_epochs = 0
    # Fields of every run, with blanks between: "batch_size=128 dataset.image_size=16".
    config.overrides = ""
    # Whether to run --mode=probe on each run as it ends; see docs/probe.md.
    config.probe = False
    config.lock()
    return config
