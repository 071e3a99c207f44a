"""A run may go on with another number of devices than it was begun on."""

import numpy as np
import pytest

from tests.end_to_end.conftest import SMALL, read_metrics


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(launch, tmp_path):
    # A small rate, and SGD: rounding, in which the two differ, grows with each step of a large one.
    command = (
        *SMALL,
        "--config.optimizer.name=sgd",
        "--config.learning_rate=1e-3",
        "--config.schedule=constant",
        "--config.dropout_rate=0",
        "--config.augment.flip=False",
        "--config.augment.scale=1,1",
        "--config.log_every_steps=1",
        "--config.num_epochs=1",
    )
    curves = []
    for first, then in ((8, 1), (1, 8)):
        workdir = tmp_path / f"on{first}"
        launch.run(*command, f"--workdir={workdir}", devices=first)
        output = launch.run(f"--workdir={workdir}", "--config.num_epochs=2", devices=then)
        assert "resuming after step 11" in output
        lines = read_metrics(workdir, "train")
        assert [line["step"] for line in lines] == list(range(1, 23))
        curves.append([line["loss"] for line in lines])
    np.testing.assert_allclose(*curves, rtol=1e-3)
