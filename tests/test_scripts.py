"""The scripts, run in a copy of the repository with a Python that only pretends to install."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
EXTRAS = ("dev", "gpu", "litert", "onnx", "report", "search", "tensorboard")
LOCKS = ["requirements.lock", *(f"requirements-{extra}.lock" for extra in EXTRAS)]
TOOLS = ["awk", "bash", "cat", "chmod", "cksum", "cp", "df", "dirname", "flock", "ls", "mkdir"]
TOOLS += ["readlink", "sleep", "tail"]

# Notes each pip and tool call, and copies itself into the environment that it makes.
FAKE_PYTHON = """#!/usr/bin/env bash
folder=${*: -1}
case "$*" in
  *version_info*) exit "${TOO_OLD:-0}" ;;
  *ensurepip*) [[ -n ${HAS_VENV-yes} ]] ;;
  "-m venv"*) mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"; echo > "$folder/pyvenv.cfg" ;;
  "-m pip --version") ;;
  "-m pip install"*)
    echo "$*" >> "$CALLS"
    sleep "${PIP_SECONDS:-0}"
    case ${PIP_DOES:-} in
      fail) echo "no route to the index"; exit 1 ;;
      die) kill -9 $PPID; exit 1 ;;
    esac
    program=$(dirname "$0")/trainer
    echo 'echo "trainer $* in $PWD"' > "$program"; chmod +x "$program" ;;
  *) echo "$*" >> "$CALLS"; [[ $2 != "${BROKEN_STEP:-}" ]] || exit 3 ;;
esac
"""


@dataclass
class Repository:
    """A copy of what the scripts read, with spaces in its path, and a PATH without Python."""

    root: Path
    programs: Path

    def command(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / script), *arguments],
            cwd=self.programs.parent,
            env={"PATH": str(self.programs), "CALLS": str(self.calls_file), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        process = self.command(script, *arguments, **variables)
        output, errors = process.communicate(timeout=30)
        return process.returncode, output, errors

    @property
    def calls_file(self) -> Path:
        return self.programs.parent / "calls"

    def new_calls(self) -> list[str]:
        """What was called since the last time, one command a line."""
        if not self.calls_file.exists():
            return []
        calls = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return calls

    def add_program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    root, programs = tmp_path / "a repository", tmp_path / "programs"
    for folder in ("scripts", ".ci"):
        shutil.copytree(ROOT / folder, root / folder)
    for name in ("setup.cfg", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, root)
    programs.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (programs / tool).symlink_to(found)
    made = Repository(root, programs)
    made.add_program("python3", FAKE_PYTHON)
    return made


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_and_parses(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_the_first_training_installs_the_lock_and_then_the_package(repository: Repository) -> None:
    code, _, errors = repository.run("scripts/train.sh", "x.yaml")
    assert code == 0, errors
    lock, package = repository.new_calls()
    assert lock.endswith("/requirements.lock")
    assert "--editable" in package
    assert "installing requirements.lock" in errors


def test_training_runs_in_the_callers_folder_with_its_arguments(repository: Repository) -> None:
    _, output, _ = repository.run("scripts/train.sh", "my config.yaml", "--set", "a=1")
    folder = repository.programs.parent
    assert output == f"trainer train my config.yaml --set a=1 in {folder}\n"


def test_a_second_call_installs_nothing_and_says_nothing(repository: Repository) -> None:
    repository.run("scripts/train.sh")
    repository.new_calls()
    _, _, errors = repository.run("scripts/train.sh")
    assert (repository.new_calls(), errors) == ([], "")


@pytest.mark.parametrize("name", ["requirements.lock", "setup.cfg"])
def test_a_changed_file_brings_the_environment_up_to_date(
    repository: Repository, name: str
) -> None:
    repository.run("scripts/train.sh")
    repository.new_calls()
    with (repository.root / name).open("a") as file:
        file.write("# another\n")
    repository.run("scripts/train.sh")
    lock, package = repository.new_calls()
    assert "--force-reinstall" not in lock
    assert "--editable" in package


def test_a_moved_repository_installs_the_package_again(repository: Repository) -> None:
    repository.run("scripts/train.sh")
    repository.new_calls()
    repository.root = repository.root.rename(repository.root.with_name("moved"))
    repository.run("scripts/train.sh")
    assert "--editable" in repository.new_calls()[-1]


def installed_sets(repository: Repository) -> list[str]:
    calls = [call for call in repository.new_calls() if "pip install" in call]
    return [call.rpartition("/")[2] for call in calls]


def test_testing_after_training_adds_only_the_sets_that_tests_need(repository: Repository) -> None:
    repository.run("scripts/train.sh")
    repository.new_calls()
    repository.run("scripts/test.sh")
    assert installed_sets(repository) == [
        f"requirements-{extra}.lock"
        for extra in ("dev", "litert", "onnx", "report", "search", "tensorboard")
    ]


APT_GET = """#!/usr/bin/env bash
echo "apt-get $*" >> "$CALLS"
exit "${APT_FAILS:-0}"
"""


def apt_calls(repository: Repository) -> list[str]:
    return [call for call in repository.new_calls() if call.startswith("apt-get")]


def test_testing_as_root_installs_a_browser_once(repository: Repository) -> None:
    repository.add_program("apt-get", APT_GET)
    repository.add_program("id", "#!/usr/bin/env bash\necho 0\n")
    repository.run("scripts/test.sh")
    assert apt_calls(repository)[-1].endswith("install --yes --no-install-recommends chromium")
    repository.run("scripts/test.sh", "tests/test_pages.py")
    assert apt_calls(repository) == []
    repository.add_program("chromium", "#!/usr/bin/env bash\n")
    repository.run("scripts/test.sh")
    assert apt_calls(repository) == []


def test_testing_goes_on_without_a_browser(repository: Repository) -> None:
    repository.add_program("apt-get", APT_GET)
    repository.add_program("id", "#!/usr/bin/env bash\necho 0\n")
    code, _, errors = repository.run("scripts/test.sh", APT_FAILS="100")
    assert code == 0
    assert "chromium could not be installed: those tests are skipped" in errors
    assert repository.new_calls()[-1].startswith("-m pytest")


def test_testing_as_a_user_leaves_the_system_alone(repository: Repository) -> None:
    repository.add_program("apt-get", APT_GET)
    repository.add_program("id", "#!/usr/bin/env bash\necho 1000\n")
    repository.run("scripts/test.sh")
    assert apt_calls(repository) == []


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], []),
        (["--format", "litert-int8"], ["requirements-litert.lock"]),
        (["--format=onnx"], ["requirements-onnx.lock"]),
        (["--format", "onnx", "--format", "litert"], ["onnx", "litert"]),
    ],
)
def test_an_export_installs_what_its_formats_need(
    repository: Repository, options: list[str], wanted: list[str]
) -> None:
    repository.run("scripts/train.sh")
    repository.new_calls()
    code, output, errors = repository.run("scripts/export.sh", "runs/a", *options)
    assert code == 0, errors
    assert output.startswith("trainer export runs/a " + " ".join(options[:1]))
    names = [name.removeprefix("requirements-").removesuffix(".lock") for name in wanted]
    assert installed_sets(repository) == [f"requirements-{name}.lock" for name in names]


def test_a_failed_installation_shows_its_last_lines_and_a_hint(repository: Repository) -> None:
    code, output, errors = repository.run("scripts/train.sh", PIP_DOES="fail")
    assert (code, output) == (2, "")
    assert "no route to the index" in errors
    assert "proxy" in errors
    assert "disk space" in errors


def test_a_failed_dev_set_leaves_training_usable(repository: Repository) -> None:
    repository.run("scripts/train.sh")
    repository.run("scripts/test.sh", PIP_DOES="fail")
    code, output, errors = repository.run("scripts/train.sh", PIP_DOES="fail")
    assert code == 0, errors
    assert output.startswith("trainer train")


@pytest.mark.parametrize("end", ["fail", "die"])
def test_an_unfinished_installation_is_repaired_by_the_next_call(
    repository: Repository, end: str
) -> None:
    assert repository.run("scripts/train.sh", PIP_DOES=end)[0] != 0
    repository.new_calls()
    assert repository.run("scripts/train.sh")[0] == 0
    assert "--force-reinstall" in repository.new_calls()[0]


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_two_first_calls_at_once_install_once(repository: Repository) -> None:
    both = [repository.command("scripts/train.sh", PIP_SECONDS="0.3") for _ in range(2)]
    messages = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert len(repository.new_calls()) == 2  # the lock and the package


def test_without_python_the_message_names_what_is_needed(repository: Repository) -> None:
    (repository.programs / "python3").unlink()
    code, _, errors = repository.run("scripts/train.sh")
    assert code == 2
    assert "Python 3.11, 3.12 or 3.13 is needed" in errors


def test_a_python_that_is_too_old_is_not_used(repository: Repository) -> None:
    code, _, errors = repository.run("scripts/train.sh", TOO_OLD="1")
    assert (code, repository.new_calls()) == (2, [])
    assert "Looked for: python3.13 python3.12 python3.11 python3" in errors


def test_without_the_venv_module_the_message_names_the_package(repository: Repository) -> None:
    code, _, errors = repository.run("scripts/train.sh", HAS_VENV="")
    assert code == 2
    assert "apt install python3-venv" in errors


def test_a_folder_that_is_no_environment_is_left_alone(repository: Repository) -> None:
    precious = repository.programs.parent / "home"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    code, _, errors = repository.run("scripts/train.sh", TRAINER_VENV="home")
    assert code == 2
    assert f"TRAINER_VENV={precious}" in errors
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("choice", "wanted"), [("auto", True), ("0", False)])
def test_an_answering_nvidia_smi_adds_the_gpu_set(
    repository: Repository, choice: str, wanted: bool
) -> None:
    repository.add_program("nvidia-smi", "#!/usr/bin/env bash\n")
    repository.run("scripts/train.sh", TRAINER_GPU=choice)
    calls = "\n".join(repository.new_calls())
    assert ("requirements-gpu.lock" in calls) == wanted


def test_the_first_failing_step_gives_the_exit_code(repository: Repository) -> None:
    assert repository.run(".ci/run", BROKEN_STEP="mypy")[0] == 3
    assert repository.new_calls()[-3:] == ["-m ruff check", "-m ruff format --check", "-m mypy"]


def test_with_arguments_only_pytest_runs(repository: Repository) -> None:
    repository.run("scripts/test.sh", "-k", "some")
    steps = [call for call in repository.new_calls() if "pip install" not in call]
    assert steps == ["-m pytest -k some"]


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("section", "option", "lock"),
    [
        ("options", "install_requires", "requirements.lock"),
        *(
            ("options.extras_require", e, f"requirements-{e}.lock")
            for e in ("dev", "litert", "onnx", "report", "search")
        ),
    ],
)
def test_a_lock_pins_what_setup_cfg_asks_for(section: str, option: str, lock: str) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = "\n".join(
        line for line in config[section][option].splitlines() if not line.startswith("#")
    )
    # On top of what every installation has.
    pinned = pins("requirements.lock") | pins(lock)
    for line in asked.split():
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), line


def test_the_locks_add_up_without_overlap() -> None:
    names = [name for lock in LOCKS for name in pins(lock)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_hashes_each_package_and_names_no_place_to_get_it(lock: str) -> None:
    text = (ROOT / lock).read_text()
    for block in re.split(r"\n(?=[a-z])", text)[1:]:
        assert "--hash=sha256:" in block, block
    assert not re.search(r"://|-index|find-links| @ |^[./-]", text, flags=re.MULTILINE)
