"""Disturbs workdirs at random: what is still reported is the number of the state that it names.

    python -m tests.reliability.fuzz_state --cases=500

A case takes a copy of a small finished run and does one to three things to its files: renames one,
swaps two, copies one from another run, cuts, flips a bit, puts a link or a folder in its place, or
changes a field. Then the run is continued, evaluated and reported. Each command either gives the
numbers of the undisturbed run, or those of a run that says itself that it was changed, or one
UserError; and nothing outside of the workdir changes.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from flax import linen as nn

from configs import digits
from flexpool_jax import configuration, evaluate, register_model, train
from flexpool_jax.errors import UserError
from flexpool_jax.report.results import find_runs

STEPS = ("11", "22")


class OneConv(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return {"stage1": nn.relu(nn.Conv(4, (3, 3), strides=2)(images))}


@register_model("one_conv_for_fuzzing", num_stages=1)
def one_conv(*, dtype, norm_axis_name):
    return OneConv()


def small_config(data_dir, variant="flexpool,reg", **fields):
    """A run of two epochs that takes a second."""
    config = digits.get_config(variant)
    config.update_from_flattened_dict(
        {
            "model": "one_conv_for_fuzzing",
            "dataset.data_dir": str(data_dir),
            "dataset.image_size": 8,
            "batch_size": 128,
            "num_epochs": 2,
            "tensorboard": False,
            "augment.scale": (1.0, 1.0),
            **fields,
        }
    )
    return config


class Arena:
    """The run that is disturbed, others to copy from, and what must not change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base, self.outside = folder / "base", folder / "outside"
        data_dir = folder / "data"
        self.config = small_config(data_dir)
        train(self.config, self.base)
        self.others = []
        for name, variant, fields in (
            ("seed", "flexpool,reg", {"seed": 1}),
            ("softmax", "softmax", {}),
            ("rate", "flexpool,reg", {"learning_rate": 0.02}),
        ):
            train(small_config(data_dir, variant, **fields), self.outside / name)
            self.others.append(self.outside / name)
        self.digest = configuration.digest(self.config)
        self.truth = {}
        for step in STEPS:
            found = evaluate(self.base, step)
            self.truth[int(step)] = (found["accuracy"], found["loss"])
        self.outside_digest = digest_of(self.outside)


def digest_of(folder: Path) -> str:
    """A digest of every file's name and content."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        sha.update(path.relative_to(folder).as_posix().encode())
        if path.is_file():
            sha.update(path.read_bytes())
    return sha.hexdigest()


def disturb(workdir: Path, arena: Arena, chance: random.Random) -> str:
    """Does one thing to the workdir; returns it in words."""
    paths = sorted(
        path for path in workdir.rglob("*") if not path.is_dir() or chance.random() < 0.3
    )
    paths = [path for path in paths if path.exists() or path.is_symlink()]
    if not paths:
        return "nothing is left"
    path = chance.choice(paths)
    name = path.relative_to(workdir).as_posix()
    action = chance.choice(("rename", "swap", "copy", "cut", "flip", "link", "folder", "field"))
    if action == "rename":
        target = path.with_name(chance.choice(("9999", "11", "33", path.name + ".old")))
        if not target.exists():
            path.rename(target)
    elif action == "swap":
        steps = [workdir / "checkpoints" / step for step in STEPS]
        if all(step.is_dir() for step in steps):
            steps[0].rename(steps[0].with_name("moved"))
            steps[1].rename(steps[0])
            steps[0].with_name("moved").rename(steps[1])
    elif action == "copy":
        source = chance.choice(arena.others) / name
        if source.exists():
            remove(path)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, path)
    elif action == "link":
        source = chance.choice(arena.others) / name
        if source.exists():
            remove(path)
            path.symlink_to(source)
    elif action == "folder":
        remove(path)
        path.mkdir()
    elif path.is_file() and not path.is_symlink():
        content = path.read_bytes()
        at = chance.randrange(len(content) + 1)
        if action == "cut":
            content = content[:at]
        elif action == "flip" and at < len(content):
            flipped = bytes([content[at] ^ (1 << chance.randrange(8))])
            content = content[:at] + flipped + content[at + 1 :]
        elif action == "field":
            content = change_field(content, chance)
        path.write_bytes(content)
    return f"{action} {name}"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def change_field(content: bytes, chance: random.Random) -> bytes:
    """Gives one number or switch of a JSON object another value; other content stays."""
    try:
        value = json.loads(content)
    except ValueError:
        return content
    leaves = list(numbers_in(value))
    if not leaves:
        return content
    owner, key = chance.choice(leaves)
    old = owner[key]
    owner[key] = not old if isinstance(old, bool) else chance.choice((old + 1, old * 2, old / 2))
    if isinstance(old, int) and not isinstance(old, bool):
        owner[key] = int(owner[key])
    return json.dumps(value).encode()


def numbers_in(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        if isinstance(part, dict | list):
            yield from numbers_in(part)
        elif isinstance(part, int | float):
            yield value, key


def check(workdir: Path, arena: Arena) -> Counter[str]:
    """Runs the three commands; returns what was found to be wrong, and how often each refused."""
    outcomes = Counter[str]()

    def attempt(name, command):
        try:
            return command()
        except UserError as error:
            lines = str(error).splitlines()
            outcomes["refused" if len(lines) == 1 else f"{name}: {len(lines)} lines"] += 1
        except OSError as error:
            # launch.py makes one line of an error that names its file.
            outcomes["refused" if error.filename else f"{name}: {error!r}"] += 1
        except Exception as error:
            outcomes[f"{name}: {type(error).__name__}: {error}"] += 1
        return None

    for step in ("latest", "best", *STEPS):
        found = attempt(f"eval {step}", lambda step=step: evaluate(workdir, step))
        if found is not None:
            right = (found["accuracy"], found["loss"]) == arena.truth.get(found["step"])
            outcomes["right" if right else f"eval {step}: WRONG {found}"] += 1

    def continue_run():
        configuration.check_workdir(str(workdir))
        return train(configuration.read_config(workdir), workdir)

    result = attempt("train", continue_run)
    if result is not None:
        outcomes["right" if is_honest(result, arena) else f"train: WRONG {result}"] += 1
    for run in attempt("report", lambda: find_runs(workdir).runs) or ():
        outcomes["right" if is_honest(run.result, arena) else f"report: WRONG {run.result}"] += 1
    if digest_of(arena.outside) != arena.outside_digest:
        outcomes["something outside of the workdir changed"] += 1
    return outcomes


def is_honest(result, arena: Arena) -> bool:
    """Whether a result is the undisturbed run's, or says that it is another's."""
    if result["config_digest"] != arena.digest or result["config_changes"]:
        return True
    accuracy, loss = arena.truth[max(arena.truth)]
    return (
        result["final_test_accuracy"] == accuracy and abs(result["final_test_loss"] - loss) < 1e-4
    )


def fuzz(cases: int, seed: int) -> Counter[str]:
    """Disturbs so many copies of a run; returns how often each outcome came about."""
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="flexpool_jax_fuzz_") as name:
        arena = Arena(Path(name))
        for case in range(cases):
            chance = random.Random(f"{seed} state {case}")
            workdir = arena.folder / "disturbed"
            shutil.copytree(arena.base, workdir)
            done = [disturb(workdir, arena, chance) for _ in range(chance.randint(1, 3))]
            for outcome, count in check(workdir, arena).items():
                known = outcome in ("right", "refused")
                outcomes[outcome if known else f"case {case} ({', '.join(done)}): {outcome}"] += (
                    count
                )
            shutil.rmtree(workdir)
    return outcomes


def main(arguments: list[str]) -> int:
    """Reads the command line; returns 1 if there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    outcomes = fuzz(options.cases, options.seed)
    right, refused = outcomes.pop("right", 0), outcomes.pop("refused", 0)
    print(f"state: {options.cases} cases: {right} right numbers, {refused} refusals", flush=True)
    for words in outcomes:
        print(f"  FAILED {words[:400]}")
    return int(bool(outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
