from __future__ import annotations

import subprocess
import sys

import pytest

import perdure
import perdure.testing


@pytest.mark.parametrize("package", [perdure, perdure.testing])
def test_every_exported_name_is_there_and_sorted(package):
    assert package.__all__ == sorted(package.__all__)
    assert set(package.__all__) == set(package._HOMES)
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("package", [perdure, perdure.testing])
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="Agnet"):
        _ = package.Agnet


def test_the_pytest_plugin_imports_nothing_of_the_platform_before_it_is_used():
    code = "import sys, perdure.testing.plugin; print([m for m in ('nats', 'asyncpg', 'openai') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
