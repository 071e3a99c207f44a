"""The paper's numbers, against the other place where they were copied from the paper."""

import re

import pytest

from flexpool_jax.configuration import load_config
from flexpool_jax.report import paper


@pytest.mark.parametrize("dataset", paper.TABLE_1)
def test_numbers_are_those_in_the_docstring_of_the_data_sets_config(dataset, request):
    text = (request.config.rootpath / "configs" / f"{dataset}.py").read_text().split('"""')[1]
    numbers = [float(n) for n in re.findall(r"\d\d\.\d\d", re.split(r"per\s+cent:", text)[1])]
    assert numbers == [*paper.TABLE_1[dataset], *paper.TABLE_2[dataset]]
    assert load_config(f"configs/{dataset}.py", "configs").dataset.name == dataset
