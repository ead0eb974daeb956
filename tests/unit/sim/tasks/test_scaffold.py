"""A scaffolded task is sound as it is, and what one breaks is named."""

import pytest

from fedretrain.core.errors import ConfigError
from sim.datasets import registry
from sim.tasks import check_task, new_task


@pytest.fixture
def task(tmp_path):
    new_task("my_task", tmp_path)
    return tmp_path / "my_task"


def test_a_new_task_is_whole_and_sound(task):
    files = {str(p.relative_to(task)) for p in task.rglob("*") if p.is_file()}
    assert files == {"task.py", "test_task.py", "sample.csv", "conf/experiment/my_task.yaml"}
    assert "@NAME@" not in "".join((task / f).read_text() for f in files)
    assert "is sound: 96 rows, 4 devices, 2 output(s)" in check_task(task)
    assert "is sound" in check_task(task / "task.py")


def test_its_own_test_passes(task):
    scope = {"__file__": str(task / "test_task.py")}
    exec((task / "test_task.py").read_text(), scope)
    scope["test_the_task_is_sound"]()


def test_it_loads_by_import_path(task, monkeypatch):
    monkeypatch.syspath_prepend(task.parent)
    data = registry.load("my_task.task:load", past_fraction=0.5)
    assert data.name == "my_task"
    data.pipeline.require_private()


BREAKS = [
    ("SCHEMA = Schema(", "SCHEMA = 1 and Schemas(", "line 27: NameError"),
    ("SCHEMA = Schema(", "SCHEMA = Schema((", "cannot be imported: line"),
    ("CLASS_NAMES = ", "CLASSES = CLASS_NAMES = None; XX = ", "CLASS_NAMES is missing"),
    ("def load(", "def loads(", "function load() is missing"),
    (
        'CLASS_NAMES = ("rest", "shake")',
        'CLASS_NAMES = ("rest", "shake", "fly")',
        "'fly' has no training rows",
    ),
    ('MODEL = {"kind": "mlp"', 'MODEL = {"kind": "cnn1d"', "the model fails on inputs"),
    ('MODEL = {"kind": "mlp"', 'MODEL = {"kind": "tree"', "kind 'tree'"),
    ('MODEL = {"kind": "mlp"', 'MODEL = {"sort": "mlp"', "mend its keys"),
    ('"ax", "g", -4.0, 4.0', '"ax", "g", -0.5, 0.5', "leaves the declared ranges: a value outside its range"),
    ('("mean", "std"', '("mean", "kurtosis"', "there is no statistic 'kurtosis'"),
    ("        pipeline=pipeline(),", "        pipeline=pipeline(), colour=1,", "load() fails: line"),
    ("    return SensorDataset(", "    return dict(", "load() gives a dict"),
    (
        "def pipeline() -> Pipeline:",
        "def pipeline():\n    return 3\n\n\ndef other():",
        "pipeline() gives a int",
    ),
    ("        schema=SCHEMA,", "        schema=Schema(SCHEMA.channels, window=19),", "the schema says"),
    ('Impute("forward"),', "", "is sound"),
]


@pytest.mark.parametrize(("old", "new", "says"), BREAKS, ids=[says for _, _, says in BREAKS])
def test_what_one_breaks_is_named(task, old, new, says):
    text = (task / "task.py").read_text()
    assert old in text
    (task / "task.py").write_text(text.replace(old, new, 1))
    try:
        told = check_task(task)
    except ConfigError as error:
        told = str(error)
        assert "\n" not in told
    assert says in told


def test_a_device_without_training_rows_and_a_bad_config_are_two_faults(task):
    text = (task / "task.py").read_text()
    (task / "task.py").write_text(text.replace("future[order]\n", "future[order] | (stream[order] == 2)\n"))
    (task / "conf/experiment/my_task.yaml").write_text("dataset: {name: watch}\n")
    with pytest.raises(ConfigError, match=r"2 fault\(s\).*'sensor3' has no training rows.*data set 'watch'"):
        check_task(task)
    (task / "conf/experiment/my_task.yaml").write_text("dataset: {\n")
    with pytest.raises(ConfigError, match="not YAML"):
        check_task(task)


def test_pooled_scalers_are_worth_a_note(task):
    text = (task / "task.py").read_text()
    (task / "task.py").write_text(text.replace('Scaler("range")', 'Scaler("standard")'))
    assert "refused with differential privacy" in check_task(task)


def test_a_folder_without_a_task_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no task\.py.*task new NAME"):
        check_task(tmp_path)


@pytest.mark.parametrize("name", ["my-task", "1st", "class", "_x", "numpy", "größe", ""])
def test_names_that_will_not_do_are_refused(tmp_path, name):
    with pytest.raises(ConfigError):
        new_task(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(task):
    (task / "task.py").write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        new_task("my_task", task.parent)
    assert (task / "task.py").read_text() == "mine"


def test_a_file_in_the_folders_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        new_task("my_task", tmp_path / "file")
