"""A trace of a run's steps can be written, and the operation behind a NaN is named."""

import re

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import launch
from flexpool_jax import register_dataset, register_model


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


@register_dataset("noise_to_profile")
def noise():
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 1), np.uint8)
    split = images, np.arange(48) % 2
    return {"train": split, "test": split}, ["0", "1"]


def run(workdir, model, flag):
    """The exit status of six steps on noise."""
    return launch.main(
        [
            f"--config=configs/digits.py:avg,model={model}",
            "--config.dataset.name=noise_to_profile",
            "--config.batch_size=16",
            "--config.num_epochs=2",
            "--config.tensorboard=False",
            "--config.compilation_cache=",
            f"--workdir={workdir}",
            flag,
        ]
    )


def test_a_profile_is_a_trace_that_tensorboard_reads(tmp_path, capsys):
    workdir = tmp_path / "a run"
    assert run(workdir, "one_conv_to_profile", "--profile") == 0
    (trace,) = (workdir / "profile/plugins/profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert f"tensorboard --logdir='{workdir}/profile'" in capsys.readouterr().err
    assert run(workdir, "one_conv_to_profile", "--profile") == 0
    assert "this command made 0" in capsys.readouterr().err


def test_the_line_behind_the_first_nan_is_named(tmp_path, capsys):
    assert run(tmp_path, "one_conv_of_nan", "--debug_nans") == 1
    pattern = rf"first NaN is the result of {__file__}:\d+, in __call__: .*jnp\.log\("
    assert re.search(pattern, capsys.readouterr().err)
