"""`--device`."""

import pytest
import torch

from rpf_lightning.devices import place_of


def test_names_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place_of("cuda:1") == torch.device("cuda", 1)
    assert place_of("cuda") == place_of("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match="device: cuda:2 is not here; CUDA devices: 2"):
        place_of("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place_of("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:1, got 'gpu'"):
        place_of("gpu")
