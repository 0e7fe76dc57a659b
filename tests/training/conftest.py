"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
import torch
from training_zoo import pictures, small_model


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def train():
    return pictures(90, 1)


@pytest.fixture
def val():
    return pictures(60, 2)


@pytest.fixture(autouse=True)
def one_thread():
    """The same bits whatever the machine; the setting is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
