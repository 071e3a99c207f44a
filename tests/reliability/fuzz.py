"""Damages files at random and reads them: what comes back is what was written, or one UserError.

    python -m tests.reliability.fuzz --cases=1000

A case flips bits of a file, overwrites, cuts, doubles or removes a piece of it, and hands it to the
code that reads it: prepared records, kept arrays, an IDX file, a gzipped raw file, images, a zip
archive, a config.json, a checkpoint. Any other exception, and any other content taken for whole, is
a failure. The number of cases is a reader's.
"""

import argparse
import gzip
import json
import random
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from flexpool_jax.data import archives, images, load_dataset, prepare_dataset
from flexpool_jax.data.dataset import Dataset
from flexpool_jax.data.download import RawFile
from flexpool_jax.data.readers.fashion_mnist import parse_idx
from flexpool_jax.data.registry import DATASETS, Contents, Digest, Example, RemoteFile, Source
from flexpool_jax.errors import UserError

# A reader's name, the files to choose from, and what reads them: it returns what it has read, or
# raises what it means to raise.
Reader = tuple[str, Callable[[], list[Path]], Callable[[], object]]


def damage(content: bytes, chance: random.Random) -> bytes:
    """Returns a file's content with one to three kinds of damage done to it."""
    for _ in range(chance.randint(1, 3)):
        size = len(content)
        at = chance.randrange(size + 1)
        length = min(size - at, chance.choice([1, 2, 4, 8, 64, 512, size]))
        piece = content[at : at + length]
        match chance.randrange(7):
            case 0 | 1 if piece:
                flipped = bytes([piece[0] ^ (1 << chance.randrange(8))])
                content = content[:at] + flipped + content[at + 1 :]
            case 2:
                content = content[:at] + chance.randbytes(length) + content[at + length :]
            case 3:
                content = content[:at]
            case 4:
                content = content[:at] + content[at + length :]
            case 5:
                content = content[:at] + piece + content[at:]
            case 6:
                content = content[:at] + bytes(length) + content[at + length :]
    return content


def register_tiny(seed: int = 0) -> None:
    """Registers a data set of forty images of noise, `tiny`."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (40, 8, 8), np.uint8)

    def read(files: tuple[RawFile, ...]) -> Contents:
        examples = [Example(images.encode_png(x), i % 4) for i, x in enumerate(noise)]
        return Contents((8, 8, 1), "abcd", {"train": examples[:30], "test": examples[30:]})

    DATASETS["tiny"] = Source(
        name="tiny",
        description="Noise.",
        homepage="https://example.org",
        read=read,
        num_classes=4,
        num_examples={"train": 30, "test": 10},
    )


def arrays_of(dataset: Dataset) -> list[bytes]:
    """Everything of a data set that training looks at."""
    splits = (dataset.train, dataset.test)
    return [a.tobytes() for split in splits for a in (split.images, split.labels)]


def prepared_records(folder: Path) -> Reader:
    """The ArrayRecord files and descriptions of a prepared data set, without kept arrays."""
    register_tiny()
    data_dir = folder / "records"
    prepared = prepare_dataset("tiny", data_dir)
    assert prepared is not None

    def read() -> object:
        for kept in prepared.glob("*.npz"):
            kept.unlink()
        return arrays_of(load_dataset("tiny", data_dir))

    # A class's name is of no consequence, and dataset_info.json also says where it was made.
    return "prepared records", lambda: sorted(prepared.glob("*.array_record*")), read


def kept_arrays(folder: Path) -> Reader:
    """The decoded arrays that are kept beside the records."""
    register_tiny()
    data_dir = folder / "kept"
    prepared = prepare_dataset("tiny", data_dir)
    assert prepared is not None

    def read() -> object:
        return arrays_of(load_dataset("tiny", data_dir))

    return "kept arrays", lambda: sorted(prepared.glob("*.npz")), read


def idx_file(folder: Path) -> Reader:
    """A bare IDX file: what it holds is not checked, but its size is that of its header."""
    path = folder / "images-idx3-ubyte"
    header = bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 8])
    path.write_bytes(header + np.random.default_rng(0).bytes(320))

    def read() -> object:
        array = parse_idx(path.read_bytes(), path.name, 3)
        assert array.nbytes == path.stat().st_size - 16
        return True

    return "IDX file", lambda: [path], read


def gzipped_raw_file(folder: Path) -> Reader:
    """A published file with the digest of its content."""
    import hashlib

    content = np.random.default_rng(0).bytes(3000)
    path = folder / "raw.gz"
    path.write_bytes(gzip.compress(content))
    digest = Digest(len(content), hashlib.sha256(content).hexdigest())
    remote = RemoteFile("https://example.org/raw.gz", Digest(0, ""), digest)
    return "gzipped raw file", lambda: [path], RawFile(path, remote).read_content


def image_files(folder: Path) -> Reader:
    """Images of every format: what comes back is an image of the size asked for, or nothing."""
    generator = np.random.default_rng(0)
    for suffix in ("png", "jpeg", "bmp", "webp", "gif", "tiff"):
        noise = generator.integers(0, 256, (16, 12, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"image.{suffix}")

    def read() -> object:
        for path in sorted(folder.glob("image.*")):
            image = images.read_image(path.read_bytes(), path.name, 3)
            assert image.mode == "RGB"
            assert image.width * image.height <= images.MAX_PIXELS
        return True

    return "image", lambda: sorted(folder.glob("image.*")), read


def zip_archive(folder: Path) -> Reader:
    """A zip archive of files, which are told by their checksums."""
    path = folder / "images.zip"
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png"):
            archive.writestr(name, generator.bytes(500) * 2)

    def read() -> list[bytes]:
        tree = archives.open_tree(path)
        assert not any(".." in name or name.startswith("/") for name in tree.files)
        return sorted(archives.read_file(tree, name) for name in tree.files)

    # An archive that lost an entry or its name is another archive, and just as good.
    whole = read()

    def is_part_of_the_whole() -> object:
        return set(read()) <= set(whole)

    return "zip archive", lambda: [path], is_part_of_the_whole


def npz_file(folder: Path) -> Reader:
    """A user's file of arrays."""
    path, generator = folder / "arrays.npz", np.random.default_rng(0)
    np.savez_compressed(
        path,
        x_train=generator.integers(0, 256, (20, 6, 6, 3), np.uint8),
        y_train=np.arange(20) % 4,
        x_test=generator.integers(0, 256, (8, 6, 6, 3), np.uint8),
        y_test=np.arange(8) % 4,
    )
    return "npz file", lambda: [path], lambda: arrays_of(load_dataset("npz", folder, path))


def config_json(folder: Path) -> Reader:
    """The config of a workdir: what is read is a config that passes every check, or is refused."""
    from configs import digits
    from flexpool_jax import configuration

    configuration.write_config(digits.get_config("flexpool,reg,sac"), folder)
    path = configuration.config_path(folder)

    def read() -> object:
        configuration.resolve(configuration.read_config(folder))
        return True

    return "config.json", lambda: [path], read


def checkpoint(folder: Path) -> Reader:
    """A checkpoint of a small state."""
    import jax.numpy as jnp
    import optax

    from flexpool_jax.training import checkpoints
    from flexpool_jax.training.steps import TrainState

    tx = optax.adam(0.1)
    params = {"pool": {"w_fp": jnp.arange(2000.0).reshape(10, 10, 20)}}
    state = TrainState(jnp.asarray(7), params, {"mean": jnp.full(3, 0.5)}, tx.init(params))
    workdir = folder / "run"
    with checkpoints.open_checkpoints(workdir) as manager:
        checkpoints.save(manager, state, {"seconds": 1.5}, 0.5)

    def read() -> object:
        import jax

        with checkpoints.open_checkpoints(workdir, read_only=True) as manager:
            try:
                restored, progress, _ = checkpoints.restore(manager, 7, state)
            except checkpoints.DamagedCheckpoint as error:
                raise UserError(str(error)) from error
        return [leaf.tobytes() for leaf in jax.tree.leaves(restored)], json.dumps(progress)

    def files() -> list[Path]:
        return sorted(path for path in workdir.rglob("*") if path.is_file())

    return "checkpoint", files, read


READERS = (
    prepared_records,
    kept_arrays,
    idx_file,
    gzipped_raw_file,
    image_files,
    zip_archive,
    npz_file,
    config_json,
    checkpoint,
)


def fuzz(make_reader: Callable[[Path], Reader], cases: int, seed: int) -> Counter[str]:
    """Damages one reader's files so many times.

    Returns:
        How often the damage was refused, how often it did no harm; and each failure's words.
    """
    outcomes = Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="flexpool_jax_fuzz_"))
    name, files, read = make_reader(folder)
    expected = read()
    contents = {path: path.read_bytes() for path in files()}
    for case in range(cases):
        chance = random.Random(f"{seed} {name} {case}")
        path = chance.choice(sorted(contents))
        path.write_bytes(damage(contents[path], chance))
        try:
            outcomes["harmless" if read() == expected else f"case {case}: WRONG {path.name}"] += 1
        except UserError as error:
            lines = str(error).splitlines()
            outcomes["refused" if len(lines) == 1 else f"case {case}: {len(lines)} lines"] += 1
        except Exception as error:
            outcomes[f"case {case}: {path.name}: {type(error).__name__}: {error}"] += 1
        for path, content in contents.items():
            path.write_bytes(content)
    shutil.rmtree(folder)
    return outcomes


def main(arguments: list[str]) -> int:
    """Reads the command line; returns 1 if there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    failed = False
    for make_reader in READERS:
        outcomes = fuzz(make_reader, options.cases, options.seed)
        sound = outcomes.pop("refused", 0), outcomes.pop("harmless", 0)
        name = make_reader.__name__.replace("_", " ")
        print(f"{name}: {options.cases} cases: {sound[0]} refused, {sound[1]} harmless", flush=True)
        for words in outcomes:
            print(f"  FAILED {words[:300]}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
