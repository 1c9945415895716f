"""bf16 on a CPU without instructions for it is several times slower, which a run says at its start."""

import platform

import pytest
import torch

from ohl_accel.engine.process import why_bf16_is_slow

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "onednn", "is_slow"),
    [
        ("x86_64", False, False, True, True),  # oneDNN also says yes where it emulates bf16 with AVX-512
        ("x86_64", True, False, True, False),
        ("AMD64", False, True, True, False),
        ("aarch64", False, False, True, False),
        ("aarch64", False, False, False, True),
    ],
)
def test_which_cpus_are_slow(
    monkeypatch: pytest.MonkeyPatch, machine: str, avx512: bool, amx: bool, onednn: bool, is_slow: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    text = why_bf16_is_slow("bf16", CPU)
    assert (text is not None) == is_slow
    assert text is None or "run.mixed_precision=no is the faster choice" in text
    assert why_bf16_is_slow("no", CPU) is None
    assert why_bf16_is_slow("bf16", CUDA) is None


def test_torch_knows_what_is_asked() -> None:
    """The functions are not part of torch's documented interface."""
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
