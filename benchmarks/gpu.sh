#!/usr/bin/env bash
# Checks, benchmarks and the paper's own tables on a borrowed NVIDIA machine without network.
#
#   benchmarks/gpu.sh pack [FOLDER]   with network and git: collects wheels, data, the commit
#   benchmarks/gpu.sh PART [FOLDER]   on the machine, to which FOLDER and the sources were copied
#
# FOLDER is .gpu if none is given. PART is one of
#   setup    installs the wheels, compares the source hash, prepares the packed data; every part does this first
#   check    agreement with the CPU in float32 and bfloat16, and resuming (benchmarks.agreement)
#   bench    training steps and evaluation against PyTorch, and whole runs
#   tables   Tables 1 and 2 in the paper's setting: 100 epochs, batch 1000, Fashion-MNIST and
#            CIFAR-10 (JPEG copy), every column with and without SAC, seeds outermost
#
# A part ends within LIMIT seconds. Status 0: it is complete. 75: run it again, it continues. Any
# other: it failed. What it has so far is in OUT. On another machine, put the last files of OUT into
# FOLDER: setup copies them to WORK, and the part continues from them.
# The machine needs Python 3.12, JAX, Flax, Optax, Orbax, scikit-learn, Matplotlib and PyTorch.
#
# Variables, with their defaults:
#   FASHION_MNIST (none)     for `pack`: the folder with the four files
#   CIFAR10_JPEG (none)      for `pack`: cifar10-jpeg.tar.xz, a folder cifar10-jpeg with train/ and test/
#   PYTHON (python3)
#   LIMIT (540)              seconds
#   WORK (/tmp/flexpool_gpu) a folder that stays between parts on one machine
#   OUT (WORK/out)           at most eight files of 16 MiB from each part
#   SEEDS (0,1,2)            of the tables
#   OVERRIDES (none)         fields of every run of the tables, e.g. dtype=bfloat16
#   DRY_RUN (none)           1 prints the commands instead of running them
#   TINY (none)              a number of epochs: a trial of every part on digits, on a CPU
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-} folder=${2:-.gpu}
PYTHON=${PYTHON:-python3} WORK=${WORK:-/tmp/flexpool_gpu} LIMIT=${LIMIT:-540}
OUT=${OUT:-$WORK/out} SEEDS=${SEEDS:-0,1,2}
INTERRUPTED=75

# What such a machine lacks; the versions are those of requirements-cpu.txt.
WHEELS=(array_record dm-tree docstring_parser googleapis-common-protos immutabledict
  importlib_resources ml_collections promise simple-parsing tensorboardX tensorflow-datasets
  tensorflow-metadata termcolor toml)

datasets=fashion_mnist,image_folder
fields="dataset.raw_dir=data/cifar10-jpeg eval_every_epochs=10 checkpoint_every_epochs=20"
check=() bench=(--batch 1000 --rounds 3) run=(--config=configs/fashion_mnist.py:flexpool,reg --epochs=100)
if [ -n "${TINY:-}" ]; then
  datasets=digits fields="dataset.image_size=8 batch_size=125 num_epochs=${TINY}"
  check=(--batch 16 --steps 2) bench=(--batch 16 --rounds 1 --seconds 0.1)
  run=(--epochs=1)
fi

say() { echo "gpu.sh $part: $*" >&2; }
left() { echo $((LIMIT - SECONDS)); }

# Runs a command, stopped by SIGTERM when the part's time is up, or only prints it.
limited() {
  if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@" && echo && return; fi
  [ "$(left)" -gt 5 ] || return $INTERRUPTED
  local status=0
  # In the foreground: a sweep passes the signal on itself, and a run told twice does not save.
  timeout --foreground --preserve-status --signal=TERM --kill-after=30 "$(left)" "$@" || status=$?
  # Benchmarks have no status of their own for it: they die of the signal.
  [ $status -ne 143 ] || status=$INTERRUPTED
  return $status
}

# Runs a program whose standard output is NAME.md, unless an earlier call of this part has.
once() {
  local status=0 name="$1.md"
  shift
  if [ -n "${DRY_RUN:-}" ]; then limited "$@" && return; fi
  if [ ! -e "$WORK/finished/$name" ]; then
    limited "$@" >"$OUT/$name.part" || status=$?
    # A table in which a contestant failed is made again if the part is called again.
    if [ $status -eq 0 ] && grep -q 'failed' "$OUT/$name.part"; then status=1; fi
    [ $status -ne 0 ] || mv "$OUT/$name.part" "$WORK/finished/$name"
  fi
  cp "$WORK/finished/"* "$OUT" 2>/dev/null || true
  return $status
}

pack() {
  local name
  git diff --quiet HEAD -- flexpool_jax configs ||
    { say "flexpool_jax/ or configs/ have changes that are not committed" && return 2; }
  mkdir -p "$folder/wheels"
  for name in "${WHEELS[@]}"; do
    name=$(grep -E "^$name==" requirements-cpu.txt | sed 's/[ ;].*//')
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
      --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
      --platform manylinux2014_x86_64 --dest "$folder/wheels" "$name" 2>/dev/null ||
      "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheels" "$name"
  done
  if [ -n "${FASHION_MNIST:-}" ]; then
    mkdir -p "$folder/fashion_mnist" && cp "$FASHION_MNIST"/*-ubyte* "$folder/fashion_mnist"
  fi
  [ -z "${CIFAR10_JPEG:-}" ] || cp "$CIFAR10_JPEG" "$folder/cifar10-jpeg.tar.xz"
  "$PYTHON" -c 'import json; from flexpool_jax import source
print(json.dumps({"commit": source.commit(), "source_hash": source.source_hash()}))' >"$folder/source.json"
  du -sh "$folder" >&2
}

setup() {
  local name raw
  export PYTHONPATH="$WORK/site${PYTHONPATH:+:$PYTHONPATH}"
  # Otherwise JAX takes the CPU, with a warning, if it cannot use the GPU.
  [ -n "${TINY:-}" ] || export JAX_PLATFORMS=cuda,cpu
  [ -n "${DRY_RUN:-}" ] || unpack
  for name in ${datasets//,/ }; do
    [ ! -e "$WORK/$name.prepared" ] || continue
    raw=$folder/fashion_mnist
    [ "$name" != image_folder ] || raw=data/cifar10-jpeg
    # `check` needs no data set, and each set can be brought by itself.
    [ "$name" = digits ] || [ -n "${DRY_RUN:-}" ] || [ -e "$raw" ] || continue
    limited "$PYTHON" launch.py --mode=prepare --config="configs/$name.py" \
      --config.dataset.raw_dir="$raw" --config.dataset.data_dir="$WORK/datasets" >&2
    [ -n "${DRY_RUN:-}" ] || touch "$WORK/$name.prepared"
  done
}

unpack() {
  local name archive
  if [ ! -e "$folder/source.json" ]; then
    say "there is no $folder/source.json; make it where there is a network: benchmarks/gpu.sh pack"
    exit 2
  fi
  mkdir -p "$WORK/finished" "$WORK/tables" "$OUT"
  for name in "${WHEELS[@]}"; do
    "$PYTHON" -c "import importlib.metadata as m; m.version('$name')" 2>/dev/null && continue
    name=$(tr '[:upper:]-' '[:lower:]_' <<<"$name")
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$WORK/site" \
      "$folder/wheels/$name"-*.whl
  done
  "$PYTHON" - "$folder/source.json" <<'END'
import json, re, sys, tomllib
from importlib import metadata
from flexpool_jax import source
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
for needed in project["dependencies"] + project["optional-dependencies"]["train"]:
    name, least = re.match(r"([\w-]+)>=([\d.]+)", needed).groups()
    if needed not in project["dependencies"] and name not in ("filelock", "orbax-checkpoint"):
        continue  # This script does without it, or has packed it.
    found = metadata.version(name)
    if [int(n) for n in re.findall(r"\d+", found)] < [int(n) for n in least.split(".")]:
        sys.exit(f"gpu.sh: {name} is {found} here; needed: {needed}")
packed, here = json.load(open(sys.argv[1])), source.source_hash()
if packed["source_hash"] != here:
    sys.exit(f"gpu.sh: the sources here ({here}) are not those that were packed ({packed})")
END
  cp "$folder/source.json" "$OUT"
  for archive in "$folder"/{tables,unfinished}.tar.gz; do
    # What is there already is newer.
    [ ! -e "$archive" ] || tar -xzf "$archive" -C "$WORK" --skip-old-files
  done
  cp -n "$folder"/*.md "$WORK/finished" 2>/dev/null || true
  if [ -e "$folder/cifar10-jpeg.tar.xz" ] && [ ! -e data/cifar10-jpeg ]; then
    "$PYTHON" -m tarfile -e "$folder/cifar10-jpeg.tar.xz" data >&2
  fi
}

check() { once agreement "$PYTHON" -m benchmarks.agreement "${check[@]}"; }

bench() {
  local flags="--config.dataset.data_dir=$WORK/datasets" status=0
  # A benchmark that was stopped starts anew; `epoch` has caches of its own.
  export JAX_COMPILATION_CACHE_DIR="$WORK/xla"
  # If one benchmark fails, for example in PyTorch's compiler, the others still run.
  measure() { once "$1" "$PYTHON" -m "benchmarks.$2" "${@:3}" || status=$?; }
  measure train_step train_step "${bench[@]}"
  measure train_step_float32 train_step "${bench[@]}" --dtype float32
  measure evaluation evaluation "${bench[@]}"
  measure epoch epoch "${run[@]}" -- "$flags"
  measure epoch_bfloat16 epoch "${run[@]}" -- "$flags" --config.dtype=bfloat16
  return $status
}

tables() {
  local status=0 cell
  if [ -z "${DRY_RUN:-}" ]; then
    datasets=$(cd "$WORK" && for name in ${datasets//,/ }; do
      [ ! -e "$name.prepared" ] || echo "$name"
    done | paste -sd,)
    [ -n "$datasets" ] || { say "no data set was packed" && return 2; }
  fi
  fields="tensorboard=False dataset.data_dir=$WORK/datasets compilation_cache=$WORK/xla $fields"
  limited "$PYTHON" launch.py --mode=sweep --config=configs/paper_tables.py \
    --workdir="$WORK/tables" --config.datasets="$datasets" --config.seeds="$SEEDS" \
    --config.overrides="$fields ${OVERRIDES:-}" || status=$?
  [ -z "${DRY_RUN:-}" ] || return 0
  # Every cell's small files; of those that are not finished the latest checkpoint as well.
  (
    cd "$WORK"
    find tables -name checkpoints -prune -o -type f -print | tar -czf "$OUT/tables.tar.gz" -T - &&
    find tables -name config.json -printf '%h\n' | while read -r cell; do
      [ -e "$cell/result.json" ] || [ ! -d "$cell/checkpoints" ] ||
        find "$cell/checkpoints" -maxdepth 1 -regex '.*/[0-9]+' | sort -V | tail -n 1
    done | tar -czf "$OUT/unfinished.tar.gz" -T -
  ) || status=1
  find "$OUT" -type f -size +16M -exec echo "gpu.sh: larger than 16 MiB:" {} + >&2
  return $status
}

case $part in
pack) pack ;;
setup) setup ;;
check | bench | tables)
  setup
  status=0
  "$part" || status=$?
  [ $status -ne $INTERRUPTED ] || say "the time is up; the same command continues"
  exit $status
  ;;
*)
  sed -n '2,/^set/{/^#/s/^# \?//p}' benchmarks/gpu.sh >&2
  exit 2
  ;;
esac
