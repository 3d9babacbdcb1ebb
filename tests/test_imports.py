"""The import check finds what it is there for: imports up the floors, and circles."""

import tomllib
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
B, A = "import house.core.b", "import house.core.a"


@pytest.fixture
def house(monkeypatch, tmp_path):
    """A package under this one's rules, its modules empty but for what is given."""

    def check(modules):
        text = PROJECT.read_text().replace("mixerflow", "house")
        floors = tomllib.loads(text)["tool"]["importlinter"]["contracts"][0]["layers"]
        for name in ("house", *" | ".join(floors).split(" | ")):
            folder = tmp_path / name.replace(".", "/")
            folder.mkdir()
            (folder / "__init__.py").touch()
        for name, body in ({"transforms/plans.py": "import house.nets"} | modules).items():
            (tmp_path / "house" / name).write_text(body)
        (tmp_path / "pyproject.toml").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return lint_imports(config_filename=str(tmp_path / "pyproject.toml"), no_cache=True) == 0

    return check


def test_what_goes_down_is_allowed(house):
    assert house({"training/a.py": "import house.core", "core/a.py": B, "core/b.py": ""})


@pytest.mark.parametrize(
    ("contract", "modules"),
    [
        ("floors", {"core/a.py": "import house.training"}),
        ("floors", {"core/a.py": FOR_TYPES + "import house.training"}),
        ("floors", {"core/a.py": "import house", "__init__.py": "import house.training"}),
        ("floors", {"nets/a.py": FOR_TYPES + "import house.kernels"}),
        ("plans.py", {"transforms/rows.py": "import house.nets"}),
        ("circles", {"core/a.py": B, "core/b.py": A}),
        ("circles", {"core/a.py": B, "core/b.py": FOR_TYPES + A}),
        ("circles", {"core/a.py": B, "core/b.py": "def f():\n    " + A}),
    ],
)
def test_a_planted_fault_is_found(house, capsys, contract, modules):
    assert not house(modules)
    broken = [line for line in capsys.readouterr().out.splitlines() if " BROKEN" in line]
    assert len(broken) == 1 and contract in broken[0]


def test_no_module_imports_a_package_that_it_lies_in():
    """Its ``__init__`` imports the module: a circle across two levels, which no contract sees."""
    graph = grimp.build_graph("mixerflow", exclude_type_checking_imports=False, cache_dir=None)
    packages = [name for name in graph.modules if graph.find_children(name)]
    found = {name: graph.find_modules_that_directly_import(name) for name in packages}
    assert len(packages) > 10
    assert not [(a, b) for b, some in found.items() for a in some if a.startswith(f"{b}.")]
