"""A program in the place of launch.py that ends in every way in which a run can end, by its seed.

python trainer.py LOG --workdir=CELL [--mode=probe]
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from flexpool_jax import configuration

DIVERGES, IS_KILLED, LEAVES_NOTHING, WAITS = 101, 102, 103, 104
PROBE_FAILS, PROBE_WAITS_ONCE, FINISHES_THE_NEXT = 105, 106, 107


def main(log: Path, workdir: Path) -> int:
    config = configuration.read_config(workdir)
    with log.open("a") as file:
        file.write(f"{workdir}\n")
    print("epoch 1/1")
    if config.seed == DIVERGES:
        print("launch.py: the loss is nan at step 3", file=sys.stderr)
        return 1
    if config.seed == IS_KILLED:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == LEAVES_NOTHING:
        return 0
    if config.seed == WAITS:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        (workdir / "waiting").touch()
        time.sleep(60)
    _write(workdir / "result.json", config)
    if config.seed == FINISHES_THE_NEXT:  # As another process would meanwhile.
        config.seed += 1
        following = workdir.with_name(f"seed-{config.seed}")
        following.mkdir()
        _write(following / "result.json", config)
    return 0


def probe(log: Path, workdir: Path) -> int:
    config = configuration.read_config(workdir)
    with log.open("a") as file:
        file.write(f"{workdir} --mode=probe\n")
    if config.seed == PROBE_FAILS:
        print("launch.py: the checkpoint is damaged", file=sys.stderr)
        return 2
    if config.seed == PROBE_WAITS_ONCE and not (workdir / "waiting").exists():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        (workdir / "waiting").touch()
        time.sleep(60)
    _write(workdir / "probe.json", config)
    return 0


def _write(path: Path, config: ConfigDict) -> None:
    result = {"config_digest": configuration.digest(config), "step": 4, "seconds": 60}
    path.write_text(json.dumps(result))


if __name__ == "__main__":
    run = probe if "--mode=probe" in sys.argv else main
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2].removeprefix("--workdir="))))
