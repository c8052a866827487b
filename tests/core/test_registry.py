"""The index lists what the code holds, and names resolve to parts with useful errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from partita.core import registry
from partita.core.errors import UserError
from partita.core.part import snake_case

MINE = '''
from dataclasses import dataclass
from partita.parts.credit import Credit

@dataclass(frozen=True)
class Doubled(Credit):
    """Twice the reward."""

    factor: float = 2.0

    def __call__(self, batch):
        return batch.reward * self.factor
'''


def test_index_is_what_the_code_says():
    assert json.loads(json.dumps(registry.build())) == registry.index(), "run `make index`"


def test_listing_imports_no_paper_and_no_torch():
    code = (
        "import sys; from partita.lab.catalogue import rows; rows();"
        "bad = [m for m in sys.modules if m == 'torch' or m.startswith('partita.papers')]; print(bad)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


@pytest.mark.parametrize("command", [["--help"], ["papers"], ["parts"], ["train", "--help"], ["--version"]])
def test_help_and_listings_do_not_import_torch(command):
    code = f"import sys; from partita.cli import main; main({command!r}); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "False"


def test_every_part_constructs_and_is_found_by_its_name():
    for slot, names in registry.index()["parts"].items():
        for name in names:
            cls = registry.part_class(slot, name)
            assert cls.slot == slot
            assert cls.part_name() == name
            assert isinstance(cls(), cls)


def test_every_recipe_loads_and_belongs_to_its_loop():
    for name, entry in registry.index()["recipes"].items():
        assert registry.recipe(name).loop == entry["loop"]


@pytest.mark.parametrize(
    ("slot", "name", "said"),
    [
        ("credit", "gea", "did you mean gae"),
        ("credit", "clipped_surrogate", "fills the slot `objective`; use --objective clipped_surrogate"),
        ("credits", "gae", "no such slot; did you mean credit"),
        ("credit", "grpo", "the paper changes credit, aggregate, regularisers, not credit"),
        ("credit", "nowhere.py:X", "nowhere.py: no such file"),
    ],
)
def test_names_that_mean_nothing(slot, name, said):
    if name == "grpo":  # a paper without a part of its own
        said = "the paper changes"
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        registry.part_class(slot, name)


def test_a_part_from_a_users_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    cls = registry.part_class("credit", f"{file}:Doubled")
    assert cls(factor=3.0).factor == 3.0
    assert cls.part_name() == f"{file}:Doubled"
    with pytest.raises(UserError, match="did you mean Doubled"):
        registry.part_class("credit", f"{file}:Double")
    with pytest.raises(UserError, match="fills the slot `credit`, not `focus`"):
        registry.part_class("focus", f"{file}:Doubled")
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match="could not be imported: ModuleNotFoundError"):
        registry.part_class("credit", f"{broken}:X")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GAE", "gae"),
        ("GroupRelative", "group_relative"),
        ("KL", "kl"),
        ("SoftOverlong", "soft_overlong"),
        ("A2C", "a2_c"),
    ],
)
def test_snake_case(name, expected):
    assert snake_case(name) == expected
