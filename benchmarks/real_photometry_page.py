"""The page of `benchmarks.real_photometry`: tables from its JSON, and what was tried in words.

python -m benchmarks.real_photometry_page WORK/photometry.json docs/photometry_real.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from applecider_batch.training.probe import VOID_AUC, probe_sentences

#: Boosting on about 100 hand-made features, same data, another quarter kept aside.
ORIENTATION = {
    "auc SN I/SN II": {"10d": 0.780, "30d": 0.923, "100d": 0.952, "full": 0.954},
    "macro_auc": {"10d": 0.837, "30d": 0.941, "100d": 0.966, "full": 0.967},
}
TARGETS = {
    "auc SN I/SN II": {"10d": 0.780, "30d": 0.940, "100d": 0.952, "full": 0.970},
    "macro_auc": ORIENTATION["macro_auc"],
}
TABLES = (
    ("auc SN I/SN II", "AUC of SN II against SN I", True),
    (
        "macro_auc",
        "Macro-AUC of SN I, SN II and TDE (no claim: the source gives TDE away)",
        True,
    ),
    ("balanced_accuracy", "Balanced accuracy of SN I, SN II and TDE", False),
    ("accuracy", "Accuracy of SN I, SN II and TDE", False),
    ("ece", "Expected calibration error (15 bins), before calibration", False),
    ("auc TDE", "AUC of TDE against SN (no claim)", True),
)
NOTES = Path(__file__).with_name("real_photometry_notes.md")


def _cell(found: dict[str, Any], measure: str, interval: bool) -> str:
    value = found["measures"].get(measure)
    if value is None:
        return ""
    if not interval:
        return f"{value:.3f}"
    low, high = found["intervals"][measure]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _table(document: dict[str, Any], measure: str, title: str, interval: bool) -> list[str]:
    horizons = document["horizons"]
    lines = [f"### {title}", "", "| | " + " | ".join(horizons) + " |"]
    lines.append("|---" * (len(horizons) + 1) + "|")
    for name, results in document["results"].items():
        cells = [_cell(results[h]["supernovae_tde"], measure, interval) for h in horizons]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, given in (("*orientation: boosting, another quarter*", ORIENTATION), ("*target*", TARGETS)):
        if measure in given:
            cells = [f"{given[measure][h]:.3f}" if h in given[measure] else "" for h in horizons]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _pretraining(document: dict[str, Any]) -> list[str]:
    measure, horizons = TABLES[0][0], document["horizons"]
    lines = [
        "## Pre-training",
        "",
        f"{document['pretrain_epochs']} epochs on masked events of the training part, then"
        f" {document['after_epochs']} epochs of training; beside it the {document['after_epochs']} epochs"
        " alone. AUC of SN II against SN I, and the macro-AUC of the three classes at full length.",
        "",
        "| [CLS]-Transformer | seed | " + " | ".join(horizons) + " | macro-AUC |",
        "|---" * (len(horizons) + 3) + "|",
    ]
    for name, seeds in document["pretraining"].items():
        for seed, results in enumerate(seeds):
            cells = [_cell(results[h]["supernovae_tde"], measure, interval=False) for h in horizons]
            cells.append(_cell(results[horizons[-1]]["supernovae_tde"], "macro_auc", interval=False))
            lines.append(f"| {name} pre-training | {seed} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def write_page(document: dict[str, Any], page: Path) -> None:
    """Write the Markdown page."""
    counts = document["counts"]
    train, validation = (sum(counts[p].values()) for p in ("train", "validation"))
    lines = [
        "# Real ZTF light curves",
        "",
        "Made by `python -m benchmarks.real_photometry DATA WORK --page docs/photometry_real.md --folds "
        f"{document['folds']} --epochs {document['epochs']} --informer-epochs {document['informer_epochs']} "
        f"--pretrain {document['pretrain_epochs']} --after {document['after_epochs']} "
        f"--seeds {document['seeds']}`.",
        "",
        NOTES.read_text(encoding="utf-8").split("<!-- after the tables -->")[0].rstrip(),
        "",
        f"In this run the transformer was trained for {document['epochs']} epochs, the Informer for "
        f"{document['informer_epochs']}.",
        "",
        f"Test objects: {', '.join(f'{k} {v}' for k, v in document['test'].items())}. Not test: "
        f"{train + validation}. Intervals are 95 % over {document['draws']} bootstrap samples of objects.",
        "",
        "## Results on the test quarter",
        "",
    ]
    for measure, title, interval in TABLES:
        lines += _table(document, measure, title, interval)
    lines += [
        "## The paper's figures, on other data",
        "",
        "The paper (arXiv:2507.16088) gives for its transformer at 30 d an accuracy of 88 ± 0.4 % and a"
        " macro-AUC of 0.97 over five classes (SN I .99, SN II .96, CV .97, AGN .99, TDE .95), and for the"
        " Informer an accuracy of 59 %. It trained on 18,245 objects with thousands of real CV and AGN, which"
        " are told from supernovae easily; here the question is mostly SN I against SN II, with "
        f"{train + validation} curves that are not test, so the figures cannot be compared one to one.",
        "",
    ]
    lines += _pretraining(document)
    lines += [
        "## Source, cadence, place",
        "",
        "The source probe is a forest on summary numbers of whole curves that tells a class's sources apart;"
        f" an AUC above {VOID_AUC} voids claims that rest on the class.",
        "",
        *(f"- {sentence}" for sentence in probe_sentences(document["source_probe"])),
        "- *cadence alone* in the tables above sees when, how often and in which band there was a detection"
        " or a limit, and no brightness: what a class can be guessed from by how it was followed.",
        "- No network of light curves reads ra and dec, so exchanging them among objects changes nothing; for"
        " networks of stamps, which do read them, see [images_real.md](images_real.md).",
    ]
    speed = document["objects_per_s"]
    lines += [
        "",
        "## Speed",
        "",
        "Objects a second at batch 256 on one CPU thread, 30 d, on the machine of this run (shared, so only"
        " the ratios mean something): "
        + ", ".join(f"{name} {value:,.0f}" for name, value in speed.items())
        + " (making them).",
        "",
        NOTES.read_text(encoding="utf-8").split("<!-- after the tables -->")[1].strip(),
        "",
    ]
    page.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Write the page again from the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("figures", type=Path)
    parser.add_argument("page", type=Path)
    asked = parser.parse_args()
    write_page(json.loads(asked.figures.read_text(encoding="utf-8")), asked.page)


if __name__ == "__main__":
    main()
