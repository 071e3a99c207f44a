"""XLA's flag is set before JAX starts, or refused; so are models that it cannot run."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax._src import xla_bridge

from configs import digits
from flexpool_jax import configuration, create_model, load_trained, train
from flexpool_jax.errors import UserError
from flexpool_jax.training.determinism import FLAG, check_deterministic, use_deterministic_ops


def test_jax_starts_with_the_flag():
    # What `flexpool_jax.train` does before it starts JAX must not start it.
    program = (
        "import os, jax; from configs import digits; from flexpool_jax import configuration;"
        "names = ('adam', 'sgd', 'adamw', 'muon', 'prodigy');"
        "configs = [digits.get_config(f'flexpool,reg,optimizer.name={name}') for name in names];"
        "[configuration.resolve(config) for config in configs];"
        "from flexpool_jax.training import run;"
        "run.use_deterministic_ops(); print(os.environ['XLA_FLAGS']);"
        "jax.devices(); run.use_deterministic_ops()"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"--xla_cpu_enable_fast_math=false {FLAG}=true"


@pytest.mark.parametrize("flags", [None, f"{FLAG}=true {FLAG}=false"])
def test_a_gpu_that_started_without_it_is_refused(monkeypatch, flags):
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: True)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if flags:
        monkeypatch.setenv("XLA_FLAGS", flags)
    use_deterministic_ops()  # The CPU of this test needs no flag.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=f"set XLA_FLAGS={FLAG}=true in the environment"):
        use_deterministic_ops()
    monkeypatch.setenv("XLA_FLAGS", FLAG)
    use_deterministic_ops()


def test_a_checkpoint_is_restored_with_the_flag(monkeypatch, tmp_path):
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    for deterministic in (False, True):
        config = digits.get_config(f"flexpool,deterministic={deterministic}")
        configuration.write_config(config, tmp_path)
        with pytest.raises(UserError, match="no checkpoint"):
            load_trained(tmp_path)
        assert (FLAG in os.environ["XLA_FLAGS"]) == deterministic


@pytest.mark.parametrize(
    ("model", "pool", "size", "allowed"),
    [
        ("resnet20", "flexpool", 32, True),
        ("resnet20", "max", 32, True),
        ("resnet18", "flexpool", 32, True),
        ("resnet18", "flexpool", 128, False),
        ("vgg11", "flexpool", 32, False),
        ("inception", "flexpool", 32, False),
    ],
)
def test_max_pooling_over_windows_is_refused(model, pool, size, allowed):
    network, shape = create_model(model, pool=pool), (size, size, 3)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    if allowed:
        check_deterministic(network, variables, shape)
    else:
        with pytest.raises(UserError, match="pools by the maximum over windows"):
            check_deterministic(network, variables, shape)


def test_a_run_is_refused_before_it_compiles(tmp_path):
    config = digits.get_config("flexpool,model=vgg11,deterministic=True")
    config.dataset.data_dir = str(tmp_path / "data")
    with pytest.raises(UserError, match="deterministic is True, and this model"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
