"""Names of the files and folders of a workdir; docs/guide.md describes most of them."""

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
DATA_FILE = "data.json"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"
POOL_WEIGHTS_FILE = "pool_weights.npz"
EVALUATION_FILE = "evaluation.json"
PROBE_FILE = "probe.json"
LOCK_FILE = ".lock"

CHECKPOINTS_FOLDER = "checkpoints"
DAMAGED_FOLDER = "checkpoints_damaged"
SUPERSEDED_FOLDER = "checkpoints_superseded"
SUPERCLASS_FOLDER = "superclass"
TENSORBOARD_FOLDER = "tensorboard"
PROFILE_FOLDER = "profile"
REPORT_FOLDER = "report"
INSPECT_FOLDER = "inspect"
PREDICT_FOLDER = "predict"
EXPORT_FOLDER = "export"

FOLDERS = (
    *(CHECKPOINTS_FOLDER, DAMAGED_FOLDER, SUPERSEDED_FOLDER, SUPERCLASS_FOLDER),
    *(TENSORBOARD_FOLDER, PROFILE_FOLDER, REPORT_FOLDER),
    *(INSPECT_FOLDER, PREDICT_FOLDER, EXPORT_FOLDER),
)
