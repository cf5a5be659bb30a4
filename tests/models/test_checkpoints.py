"""Files of checkpoints: what is read, and what is refused without running it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from applecider_batch.errors import UserError
from tests.models.checkpoints import (
    run,
    save,
    small_state,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Evil:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, command: Callable[..., Any], *arguments: Any) -> None:
        self.call = (command, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", ["alone", "beside weights", "nested"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, suffix: str, legacy: bool, inside: str
) -> None:
    trace = tmp_path / "it ran"
    evil = Evil(os.mkdir, str(trace))
    state: dict[str, Any] = small_state()
    content = {
        "alone": evil,
        "beside weights": state | {"fc.bias": evil},
        "nested": {"state_dict": state, "hyper_parameters": {"f": [evil]}},
    }[inside]
    file = tmp_path / f"model{suffix}"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"was refused: it is a pickle .*mkdir") as caught:
        run(file)
    assert not trace.exists()
    assert not (tmp_path / "set").exists()
    assert caught.value.exit_code == 4
    torch.load(file, weights_only=False)  # the file really is dangerous
    assert trace.exists()


def test_a_bare_pickle_and_a_whole_module_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(os.mkdir, str(trace))))
    with pytest.raises(UserError, match="refused"):
        run(tmp_path / "bare.pt")
    assert not trace.exists()
    with pytest.raises(UserError, match=r"refused.*Linear.*state_dict\(\)"):
        run(save(tmp_path / "module.pt", nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.bin", b"", r"allowed: \.pt, \.pth, \.safetensors"),
        ("a.pt", b"not a checkpoint at all", "refused|not a readable"),
        ("a.pt", b"", "not a readable|refused"),
        ("a.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00not json........", "not a readable safetensors"),
        ("a.safetensors", b"", "not a readable safetensors"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=match):
        run(tmp_path / name)


def test_absent_truncated_and_empty_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no checkpoint file"):
        run(tmp_path / "nowhere.pt")
    file = save(tmp_path / "model.pt", small_state())
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(UserError, match="not a readable torch checkpoint"):
        run(file)
    for content in ({}, {"epoch": 3}, [torch.zeros(2)], {"state_dict": {}}):
        with pytest.raises(UserError, match="holds no state dict"):
            run(save(tmp_path / "model.pt", content))
    with pytest.raises(UserError, match="entries that are not tensors: best_score"):
        run(save(tmp_path / "model.pt", small_state() | {"best_score": 0.9}))
