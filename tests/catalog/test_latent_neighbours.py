"""Nearest known objects in the latents against a plain loop over all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from applecider_batch.catalog import latent_neighbours as module
from applecider_batch.catalog.build import build_catalog
from applecider_batch.catalog.latent_neighbours import has_latents, latent_neighbours
from applecider_batch.catalog.side import read_side_table
from applecider_batch.catalog.store import open_catalog
from tests.catalog.synthetic import add_embeddings, object_names, write_run

NAMES = object_names(120)
LABELS = {name: ("SN I", "TDE", "variable_star")[i % 3] for i, name in enumerate(NAMES) if i % 2}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("latents")
    run = write_run(folder / "run", NAMES)
    add_embeddings(run)
    build_catalog(str(run), str(folder / "cat"))
    return str(folder / "cat")


def _plain(catalogue: str, key: tuple[str, int], short: str) -> list[tuple[float, str]]:
    """Distance and name of all labelled objects, nearest first."""
    rows = [
        r for r in read_side_table(catalogue, "embeddings").to_dicts()
        if r["horizon_days"] is None and r[f"latent_{short}"] is not None
    ]  # fmt: skip
    latents = {(r["objectId"], r["episode"]): np.array(r[f"latent_{short}"], float) for r in rows}
    if key not in latents:
        return []
    scatter = np.std([v for (name, _), v in latents.items() if name in LABELS], axis=0)
    used = scatter > 1e-5
    assert not used.all()
    found = []
    for (name, _), other in latents.items():
        if name in LABELS and name != key[0]:
            step = (latents[key] - other)[used] / scatter[used]
            found.append((float(np.sqrt((step**2).mean() / 2)), name))
    return sorted(found)


@pytest.mark.parametrize("piece", [17, 4096])
def test_neighbours_are_those_of_a_plain_loop(
    catalogue: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    store, info = open_catalog(catalogue)
    keys = [(name, 1) for name in NAMES[:40]] + [("ZTF00none", 1)]
    found = latent_neighbours(store, info, "full", keys, LABELS, nearest=4)
    assert set(found) == set(keys)
    counts = {"photometry": 0, "image": 0}
    for key in keys:
        for modality, short in (("photometry", "phot"), ("image", "img"), ("spectra", "spec")):
            expected = _plain(catalogue, key, short)[:4]
            near = found[key].get(modality, [])
            assert [n.object_id for n in near] == [name for _, name in expected]
            assert [n.distance for n in near] == pytest.approx([d for d, _ in expected], rel=1e-6)
            assert all(n.label == LABELS[n.object_id] for n in near)
            if near:
                counts[modality] += 1
    assert counts["photometry"] > counts["image"] > 5
    assert found["ZTF00none", 1] == {}


def test_one_is_the_distance_at_random(catalogue: str) -> None:
    """The root mean square over all pairs of labelled episodes, each with itself included, is 1."""
    store, info = open_catalog(catalogue)
    keys = [(name, 1) for name in LABELS]
    found = latent_neighbours(store, info, "10", keys, LABELS, nearest=len(LABELS))
    with_latent = [near["photometry"] for near in found.values() if "photometry" in near]
    square = sum(n.distance**2 for near in with_latent for n in near)
    assert square / len(with_latent) ** 2 == pytest.approx(1.0, rel=1e-6)


def test_without_labels_or_latents_there_is_none(catalogue: str, tmp_path: Path) -> None:
    store, info = open_catalog(catalogue)
    assert has_latents(info)
    assert latent_neighbours(store, info, "full", [(NAMES[0], 1)], {}) == {(NAMES[0], 1): {}}
    build_catalog(str(write_run(tmp_path / "run", NAMES[:5])), str(tmp_path / "cat"))
    assert not has_latents(open_catalog(str(tmp_path / "cat"))[1])
