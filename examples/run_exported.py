"""python run_exported.py FOLDER [IMAGES.npy]: runs an export with jax and flatbuffers alone."""

import base64
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from jax import export

program = Path(sys.argv[1], "model.jax").read_bytes()
check = json.loads(Path(sys.argv[1], "check.json").read_bytes())
names = json.loads(Path(sys.argv[1], "config.json").read_bytes())["label_names"]
assert hashlib.sha256(program).hexdigest() == check["sha256"]["model.jax"], "model.jax is damaged"
probe = np.frombuffer(base64.b64decode(check["probe"]["input"]), np.uint8)
images = np.load(sys.argv[2]) if sys.argv[2:] else probe.reshape(check["probe"]["shape"])
for row in np.asarray(export.deserialize(bytearray(program)).call(images)):
    print(names[row.argmax()], *row)
