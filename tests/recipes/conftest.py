"""Recipes are built and run many times over: the same programs are compiled once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_compilation(compiled_once: None) -> None:
    """See ``compiled_once``."""
