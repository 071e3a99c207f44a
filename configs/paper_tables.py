"""Tables 1 and 2 of the paper: four data sets, four columns, with and without SAC, five seeds.

    python launch.py --mode=sweep --config=configs/paper_tables.py --workdir=sweeps/paper
    python launch.py --mode=report --workdir=sweeps/paper

The sweep has 160 runs in the paper's settings, for which GPUs are needed. Its fields can select
fewer runs. Finished runs are not run again, so that a sweep can be extended later:

    python launch.py --mode=sweep --config=configs/paper_tables.py --workdir=sweeps/digits \\
        --config.datasets=digits --config.seeds=0,1
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the sweep over both tables. Its runs are those of configs/<dataset>.py."""
    config = ConfigDict()
    # Rows of the tables, in order: names of config files in this folder. The paper's "ImageNet" is
    # Tiny ImageNet.
    config.datasets = ("cifar10", "fashion_mnist", "cifar100", "tiny_imagenet")
    # Columns of the tables: variants of a data set's config, joined by + instead of commas, such as
    # avg+dropout, flexpool+reg=0.01, flexpool+pool_learning_rate_scale=0.02.
    config.columns = ("avg", "flexpool", "flexpool+reg", "flexpool+reg+dropout")
    # Auxiliary classifiers. "off" is Table 1. "on" is Table 2, with the weights of the data set's
    # config: 0.1, 0.2 and 0.7. Other weights of Eq. 3 are written with slashes: 0.05/0.1/0.85.
    config.sac = ("off", "on")
    # Seeds of the runs. The paper does not say how many runs its numbers are from; five runs are
    # enough for a confidence interval.
    config.seeds = (0, 1, 2, 3, 4)
    # Number of epochs. 0: that of each data set's config, which is 100 for those of the paper.
    config.num_epochs = 0
    # Fields set in every run, separated by spaces: "batch_size=128 dataset.image_size=16".
    config.overrides = ""
    # Whether --mode=probe runs after each training; see docs/probe.md.
    config.probe = False
    config.lock()
    return config
