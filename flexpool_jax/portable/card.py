"""Writes the README.md of an exported network: a model card with measured numbers."""

from __future__ import annotations

import re

from scipy import stats

import flexpool_jax
from flexpool_jax import configuration, files, layout
from flexpool_jax.models.classifier import prediction_params
from flexpool_jax.pages.markdown import escaped
from flexpool_jax.trained import Trained
from flexpool_jax.training import checkpoints
from flexpool_jax.training.steps import parameter_count

# The citation is also in CITATION.cff and README.md; tests compare them.
CITATION = """\
@inproceedings{ali2023flexpooling,
  title = {FlexPooling with Simple Auxiliary Classifiers in Deep Networks},
  author = {Ali, Muhammad and Alsuwaidi, Omar and Khan, Salman},
  booktitle = {Proceedings of the 18th International Joint Conference on Computer Vision, Imaging
               and Computer Graphics Theory and Applications (VISIGRAPP), Volume 4: VISAPP},
  year = {2023},
  pages = {497--505},
  doi = {10.5220/0011894400003417},
  note = {arXiv:2606.14926}
}"""


def model_card(trained: Trained, *, is_best: bool = False) -> str:
    """Returns the card in Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        trained: the network.
        is_best: whether its step was chosen as the one with the best accuracy.
    """
    config, run = trained.config, configuration.read_config(trained.workdir)
    height, width, channels = trained.image_shape
    parameters = parameter_count(prediction_params(trained.variables["params"]))
    sac = ", trained with Simple Auxiliary Classifiers" if config.sac.enabled else ""
    classes = ", ".join(map(escaped, trained.class_names[:20]))
    if len(trained.class_names) > 20:
        classes += f" and {len(trained.class_names) - 20} more (config.json has all)"
    colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    epochs = f"{run.num_epochs} epoch{'s' * (run.num_epochs != 1)}"
    dataset = re.sub(r"[^\w.-]", "-", trained.dataset_name)
    return f"""\
---
tags:
- image-classification
- flexpool
- jax
library_name: flexpool_jax
license: apache-2.0
datasets:
- {dataset}
metrics:
- accuracy
---
# {config.model} with the pool {config.pool} on {escaped(trained.dataset_name)}

An image classifier{sac}: {parameters:,} parameters, images of
{height}×{width} pixels ({colours}), {len(trained.class_names)} classes: {classes}.

## Measured

{_measured(trained, is_best)}

The weights are those of step {trained.step:,} of a run of {epochs} in batches of
{run.batch_size} with seed {run.seed}; the digest of its config is
`{configuration.digest(run)}`. {_versions(trained)}

## Use

With jax and flatbuffers alone, `model.jax` takes uint8 images [b, {height}, {width}, {channels}]
and returns probabilities [b, {len(trained.class_names)}]:

```python
from jax import export

program = export.deserialize(bytearray(open("model.jax", "rb").read()))
probabilities = program.call(images)
```

With flexpool_jax, `flexpool_jax.load_exported(folder)` first checks every file against
`check.json`, and `flexpool_jax.load_weights("model.safetensors", variables)` loads the weights for
further training. JAX reads `model.jax` for six months of its releases; `model.safetensors` lasts.

{_how_to_resize(trained)} The network gives every image one
of its classes, whatever the image shows.

## Licence and citation

Apache 2.0, as flexpool_jax. The data have a licence of their own.

```bibtex
{CITATION}
```
"""


def _how_to_resize(trained: Trained) -> str:
    """A sentence on how images of another size must be resized, which is what evaluation does."""
    dataset, (height, width, _) = trained.config.dataset, trained.image_shape
    if dataset.resize == "stretch" and not dataset.center_crop:
        return f"Images of another size must be resized to {height}×{width} pixels."
    size = dataset.image_size
    first = (
        f"to {size}×{size} pixels"
        if dataset.resize == "stretch"
        else f"by their short side to {size} pixels"
    )
    return f"Images must be resized {first}, and their middle {height}×{width} pixels cut out."


def _versions(trained: Trained) -> str:
    """A sentence on the releases of this project that trained and exported a network."""
    exporting = f"flexpool_jax {flexpool_jax.__version__} exported them."
    versions = files.read_json_if_whole(trained.workdir / layout.RESULT_FILE).get("versions")
    if not isinstance(versions, dict) or "flexpool_jax" not in versions:
        return exporting
    return f"flexpool_jax {versions['flexpool_jax']} trained them; {exporting}"


def _measured(trained: Trained, is_best: bool) -> str:
    """A table of the measurements of this checkpoint, or a sentence on how to measure it."""
    rows = [
        f"| {source} | {split} | {count:,} | {_percent(accuracy, count)} | {loss:.4f} |"
        for source, split, count, accuracy, loss in _measurements(trained)
    ]
    if not rows:
        return (
            f"This checkpoint has not been measured: neither `result.json` nor `evaluation.json` "
            f"is of its weights. `--mode=eval --step={trained.step}` measures it."
        )
    choice = "This step was chosen by its accuracy on these images, which is therefore too high. "
    return "\n".join(
        [
            "| from | images | n | accuracy in % (95 % interval) | cross-entropy |",
            "| --- | --- | ---: | ---: | ---: |",
            *rows,
            "",
            f"{choice if is_best else ''}The interval (Wilson's) is that of drawing n images; one "
            "run says nothing about other seeds.",
        ]
    )


def _measurements(trained: Trained) -> list[tuple[str, str, int, float, float]]:
    """The file, split, number of images, accuracy and loss of each measurement of this step."""
    found = []
    model = checkpoints.model_reference(trained.step, trained.variables)
    for name, prefix in ((layout.RESULT_FILE, "final_test_"), (layout.EVALUATION_FILE, "")):
        report = files.read_json_if_whole(trained.workdir / name)
        if not files.measures_same_model(report, model) or report.get("resize"):
            continue
        try:
            split = {"test": "test", "validation": "held-out training"}[report["split"]]
            # result.json does not have the number in release 0.1.
            count = int(report.get("examples", trained.test_images))
            accuracy, loss = (float(report[f"{prefix}{what}"]) for what in ("accuracy", "loss"))
        except (KeyError, TypeError, ValueError):
            continue  # Damaged, or written by hand.
        if count > 0 and 0 <= accuracy <= 1:
            found.append((name, split, count, accuracy, loss))
    return found


def _percent(accuracy: float, count: int) -> str:
    """An accuracy with Wilson's 95 % interval.

    Example:
        >>> _percent(0.9, 100)
        '90.00 (82.56 to 94.48)'
    """
    interval = stats.binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
    return f"{accuracy * 100:.2f} ({interval.low * 100:.2f} to {interval.high * 100:.2f})"
