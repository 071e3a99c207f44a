"""The numbers that the paper reports: Tables 1 and 2, test accuracy in per cent.

The paper's row "ImageNet" is Tiny ImageNet shrunk to 32×32 (section 4.1). The paper does not say
how many runs a number is from, nor whether it is the accuracy after the last or the best epoch.
"""

from __future__ import annotations

# The network of both tables.
MODEL = "resnet20"

COLUMNS = ("AvgPool", "FlexPool", "FlexPool + Reg", "FlexPool + Reg + Dropout")

# For each data set its accuracies, in the order of COLUMNS.
TABLE_1: dict[str, tuple[float, float, float, float]] = {
    "cifar10": (91.63, 91.91, 91.87, 92.32),
    "fashion_mnist": (91.38, 92.35, 93.48, 93.98),
    "cifar100": (66.18, 66.50, 66.73, 68.30),
    "tiny_imagenet": (46.50, 47.03, 48.11, 48.55),
}
TABLE_2: dict[str, tuple[float, float, float, float]] = {
    "cifar10": (89.31, 91.61, 91.86, 92.03),
    "fashion_mnist": (93.55, 93.65, 93.48, 93.84),
    "cifar100": (63.79, 64.12, 64.53, 65.57),
    "tiny_imagenet": (45.13, 47.55, 48.64, 49.01),
}

# Section 4.4.1.
DROPOUT_RATE = 0.25

DATASET_TITLES = {
    "digits": "Digits",
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny ImageNet",
}


def accuracy(dataset: str, column: str, *, sac: bool) -> float | None:
    """The paper's accuracy in one cell of its tables, in per cent; None for other data sets.

    Args:
        dataset: The data set's name, as in `config.dataset.name`.
        column: One of `COLUMNS`.
        sac: Whether the cell is in Table 2 (with SAC) and not in Table 1.

    Example:
        >>> accuracy("fashion_mnist", "FlexPool + Reg", sac=True)
        93.48
    """
    row = (TABLE_2 if sac else TABLE_1).get(dataset)
    return None if row is None else row[COLUMNS.index(column)]
