"""The names of all files in a run folder."""

RECIPE_FILE = "recipe.yaml"
HELDOUT_FILE = "heldout.json"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
CLASSES_FILE = "classes.json"
REPLACED_FILE = "replaced.jsonl"
REPORT_FILE = "report.html"
POLICY_FILE = "policy.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
NETWORK_FILES = (WEIGHTS_FILE, CONFIG_FILE)
"""The network, as timm reads it."""
DIGESTS_FILE = "digests.json"
CHECKPOINTS = "checkpoints"
TRACKERS_FILE = "trackers.json"
TENSORBOARD, WANDB = "tensorboard", "wandb"
RUNS_FOLDER = "runs"
"""Where recipes put their run folders."""
LOCK_FILE = ".lock"
RUN_FILES = (
    RECIPE_FILE,
    HELDOUT_FILE,
    METRICS_FILE,
    RESULT_FILE,
    CLASSES_FILE,
    REPORT_FILE,
    REPLACED_FILE,
    TRACKERS_FILE,
    CHECKPOINTS,
    TENSORBOARD,
    WANDB,
    POLICY_FILE,
    *NETWORK_FILES,
    DIGESTS_FILE,
)
"""Everything that a run writes: what `run.overwrite` removes."""
