"""Imports go down only, and the lowest floors know neither TensorFlow nor Keras."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up. A name is a module or a package, whose modules may import each other.
FLOORS = (
    {"errors"},
    {"locks"},
    {"config", "run_dir", "recorded_steps"},
    {"log_frames", "health_events"},
    {
        "gradient_log",
        "named_arrays",
        "machine",
        "runtime_choices",
        "pixels",
        "views",
        "mistakes",
        "terminal",
        "pages",
    },
    {"diagnosis", "runs", "non_finite"},
    {"live", "report", "closing", "event_files"},
    {"compare"},
    {"quiet", "kernel_gradient", "bias", "bias_sums"},
    {
        "runtime",
        "data",
        "activations",
        "initializers",
        "normalization",
        "convolution",
        "regularizers",
        "schedules",
        "gradient_stats",
        "bounded_values",
        "keras_specs",
        "loss_checks",
        "saved_models",
    },
    {"layers", "activation_stats", "activation_hook"},
    {"window_buffer", "dead_units", "progress"},
    {"gradient_hook"},
    {"models", "model_summary", "optimizers", "callbacks", "checkpoint"},
    {"recovery"},
    {"fitting", "evaluate", "doctor_checks", "diagnose_model", "run_data"},
    {"train", "export", "doctor"},
    {"classifiers", "xray", "search"},
    {"predict"},
    {"cli"},
    # The package's own doors: `import trainer` and `python -m trainer`.
    {"__init__", "__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FIRST_WITH_KERAS = 8
FILES = {
    path: path.relative_to(ROOT / "trainer").with_suffix("").parts[0]
    for path in sorted((ROOT / "trainer").rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from trainer import machine` names a module, `from trainer.errors import X` none.
            is_package = node.module == "trainer"
            names |= {f"trainer.{a.name}" for a in node.names} if is_package else {node.module}
    return names


def test_every_module_stands_on_one_floor() -> None:
    assert set(FILES.values()) == set(FLOOR_OF)
    assert sum(map(len, FLOORS)) == len(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    own = FILES[path]
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "trainer" and rest not in ("", "__version__"):
            target = rest.split(".")[0]
            assert target == own or FLOOR_OF[target] < FLOOR_OF[own], f"{own} imports {name}"
        assert FLOOR_OF[own] >= FIRST_WITH_KERAS or package not in ("tensorflow", "keras"), name


def test_the_command_line_reads_a_config_without_tensorflow() -> None:
    script = (
        "import sys; from pathlib import Path; import trainer.cli; "
        "from trainer.config import load_config; load_config(Path('configs/quickstart.yaml')); "
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
