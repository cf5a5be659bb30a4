"""A network that a run cannot feed is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from applecider_batch.engine.plan import open_inputs
from applecider_batch.errors import UserError
from applecider_batch.models.model_set import ModelSet, init_model_set
from applecider_batch.models.use import check_fed, use_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "models"
    init_model_set(path, networks=("spectra_image",))
    return path


def test_pictures_of_spectra_are_not_put_into_use(folder: Path) -> None:
    check_fed(ModelSet.load(folder, check_weights=False))
    with pytest.raises(UserError, match="reads pictures of spectra"):
        use_network(folder, "spectra_image")


def test_a_set_that_has_them_in_use_is_refused_before_a_run(folder: Path) -> None:
    manifest = folder / "model_set.toml"
    text = manifest.read_text(encoding="utf-8")
    blocks = text.split("[[network]]")
    for index, block in enumerate(blocks):
        if 'name = "spectranet"' in block:
            blocks[index] = block.replace("default = true", "default = false")
        if 'name = "spectra_image"' in block:
            blocks[index] = block.replace("default = false", "default = true")
    changed = "[[network]]".join(blocks)
    assert changed != text
    manifest.write_text(changed, encoding="utf-8")
    try:
        with pytest.raises(UserError, match="reads pictures of spectra"):
            open_inputs(str(folder / "no-archive"), str(folder), None, None)
    finally:
        manifest.write_text(text, encoding="utf-8")
