from __future__ import annotations

import perdure


def test_every_exported_name_is_there_and_sorted():
    assert perdure.__all__ == sorted(perdure.__all__)
    assert set(perdure.__all__) == set(perdure._HOMES)
    for name in perdure.__all__:
        assert getattr(perdure, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    try:
        _ = perdure.Agnet
    except AttributeError as error:
        assert "Agnet" in str(error)
    else:
        raise AssertionError("no error")
