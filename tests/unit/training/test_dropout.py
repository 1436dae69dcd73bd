"""A pass without dropout leaves every module in the mode that it found it in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.training.dropout import without_dropout


def _build() -> nn.Sequential:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)))
    model.train()
    model[1].eval()  # a frozen part that stays out of training
    return model


def test_nothing_is_dropped_inside() -> None:
    model = nn.Dropout(0.9).train()
    with without_dropout(model):
        assert torch.equal(model(torch.ones(100)), torch.ones(100))
    assert not torch.equal(model(torch.ones(100)), torch.ones(100))


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_own_mode_back(fails: bool) -> None:
    model = _build()
    before = [module.training for module in model.modules()]
    try:
        with without_dropout(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [module.training for module in model.modules()] == before
    assert before == [True, True, False, False, False]
