"""Turns a PyTorch checkpoint into a safetensors file that `flexpool_jax.load_weights` reads.

    python scripts/convert_torch.py resnet20.th resnet20.safetensors

Needs torch and safetensors, and nothing of flexpool_jax. The checkpoint is a state dict, or a dict
that holds one under "state_dict" or "model". torch reads it with weights_only=True, which runs no
code that a pickle may hold.
"""

import argparse
import sys

import torch
from safetensors.torch import save_file


def main() -> None:
    """Converts the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a .pt, .pth or .th file")
    parser.add_argument("target", help="the safetensors file to write")
    arguments = parser.parse_args()
    try:
        content = torch.load(arguments.source, map_location="cpu", weights_only=True)
    except Exception as error:
        sys.exit(f"{arguments.source} cannot be read without running its code: {error}")
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        sys.exit(f"{arguments.source} holds a {type(content).__name__}, not a state dict")
    others = [str(name) for name, value in content.items() if not torch.is_tensor(value)]
    if others:
        sys.exit(f"{arguments.source} holds more than tensors: {', '.join(others)}")
    # Copies, since safetensors refuses tensors that share memory.
    tensors = {name: value.detach().clone().contiguous() for name, value in content.items()}
    save_file(tensors, arguments.target)
    print(f"{len(tensors)} tensors in {arguments.target}")


if __name__ == "__main__":
    main()
