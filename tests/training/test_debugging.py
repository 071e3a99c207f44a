"""A trace of a run's steps can be written, and the operation behind a NaN is named."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import digits
from flexpool_jax import register_model, train
from flexpool_jax.data import Dataset, Split
from flexpool_jax.errors import TrainingDiverged


class OneConv(nn.Module):
    shift: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), strides=4)(images)
        return {"stage1": jnp.log(nn.relu(x) + 1.0 - self.shift)}


@register_model("one_conv_to_profile", num_stages=1)
def one_conv(*, dtype, norm_axis_name):
    return OneConv()


@register_model("one_conv_of_nan", num_stages=1)
def one_conv_of_nan(*, dtype, norm_axis_name):
    return OneConv(shift=100.0)


def run(workdir, model, **switches):
    """Six steps on noise."""
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), np.uint8)
    split = Split(images, np.arange(48, dtype=np.int32) % 2)
    dataset = Dataset("noise", split, split, ("0", "1"), np.float32([0.5]), np.float32([0.3]))
    config = digits.get_config("avg")
    config.model, config.batch_size, config.num_epochs = model, 16, 2
    config.tensorboard, config.compilation_cache = False, ""
    return train(config, workdir, dataset, **switches)


def test_a_profile_is_a_trace_that_tensorboard_reads(tmp_path, capsys):
    run(tmp_path, "one_conv_to_profile", profile=True)
    (trace,) = (tmp_path / "profile/plugins/profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert f"tensorboard --logdir={tmp_path}/profile" in capsys.readouterr().err
    run(tmp_path, "one_conv_to_profile", profile=True)
    assert "this command made 0" in capsys.readouterr().err


def test_the_line_behind_the_first_nan_is_named(tmp_path):
    pattern = rf"first NaN is the result of {__file__}:\d+, in __call__: .*jnp\.log\("
    with pytest.raises(TrainingDiverged, match=pattern):
        run(tmp_path, "one_conv_of_nan", debug_nans=True)
