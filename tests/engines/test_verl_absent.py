"""Where verl is not installed."""

import importlib
import sys

import pytest

from partita.core.errors import UserError


def test_without_verl_the_package_to_install_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "verl" else found(name, *a))
    monkeypatch.delitem(sys.modules, "partita.engines.verl", raising=False)
    with pytest.raises(UserError, match=r'verl is not installed; pip install "partita\[verl\]"'):
        importlib.import_module("partita.engines.verl")
