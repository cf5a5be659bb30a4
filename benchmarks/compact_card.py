"""The card of the set ``compact``: what it learned from, what it is worth, what it must not be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Found = dict[str, Any]

_HEAD = """# Model set `compact`

Small networks for a CPU, packaged with applecider-batch: `classify --models compact`. Made by `make models`
(`python -m benchmarks.compact`); the weights come from that training alone.
"""
_TRIPLETS = """All real objects with labelled stamps, the latest packet of each; none trained this set.
*By folds*: the same network trained on three quarters of them and asked for the rest, stopped where that
rest was best, so rather too good. *The ceiling* is what this network makes of simulated test objects,
whose stamps and metadata are just as it learned them: nothing better can be expected of real ones. TDE
are three objects."""
_CALIBRATION = """Light curves and fused answers: on validation objects, where the temperatures were fitted.
Spectra: on test spectra. Stamps: on real triplets, each fold by the temperature of the others. Without real
data all are simulated validation objects."""
_PAPER = """AppleCiDEr (arXiv:2507.16088) was trained on other, far more data, so this says how far apart
the two are, not which is better. Its light curves: 18,245 objects with thousands of real CV and AGN,
which are told from supernovae easily. Its stamps: real alerts with AGN and TDE as one class, *nuclear*.
Its spectra: largely of one instrument, nine classes with AGN, CV and TDE among them."""
_HERE = Path(__file__).parent
_DOCS = _HERE.parent / "docs"
#: Tables with the forests' figures on the same test quarter: page, heading, row.
_FORESTS = {
    "photometry": ("photometry_real.md", "### AUC of SN II against SN I", "forest, light-curve features"),
    "by spectrum": ("spectra_real.md", "## By spectrum, redshift given (the headline)", "forest on PCA"),
    "by object": ("spectra_real.md", "## By object, redshift given", "forest on PCA"),
}
_LEARNED = (
    ("real and simulated (this set)", "real"),
    ("real alone", "only-real"),
    ("simulated alone", "only-simulated"),
)
_SPECTRA = (
    ("accuracy, 7 classes", "seven", "accuracy"),
    ("macro-AUC, 7 classes", "seven", "macro_auc"),
    ("accuracy, SN I/SN II", "broad", "accuracy"),
)


def write_card(work: Path, found: Found, survey: dict[str, int]) -> None:
    """Write ``README.md`` into the set."""
    text = [_HEAD, f"Set `{found['model_set_id']}`, {found['bytes'] / 1e6:.1f} MB in all.", ""]
    text += table("input", "network", "learned from")
    for what, name in found["networks"].items():
        both = "real" in found and what != "image"
        text.append(f"| {what} | `{name}` | {'real and simulated' if both else 'simulated'} objects |")
    text += [
        "",
        f"Simulation: {survey['objects']:,} objects of all kinds over {survey['nights']} nights, seed "
        f"{survey['seed']} (docs/simulation.md). Training, calibration and test are on separate objects: test"
        " is `int(sha256(object_key)[8:16], 16) % 4 == 0`; a sixth of the rest validates and calibrates.",
        "",
    ]
    if reason := found.get("no_anomaly"):
        text += [f"**Without an anomaly reference**: {reason}", ""]
    if "real" in found:
        text += real(found)
    else:
        text += ["**Made without real data: every figure below is of simulated objects.**", ""]
    text += ["## Simulated test objects (a check of the software, not a performance)", ""]
    text += sweep(found["simulated"], ("photometry", "image", "spectra", "fused"))
    text += ["", "## Calibration", "", _CALIBRATION, ""]
    text += table("", "objects", "ECE before", "ECE after")
    for what, c in found["check"].items():
        text.append(f"| {what} | {c['objects']} | {c['ece_before']:.3f} | {c['ece_after']:.3f} |")
    text += ["", (_HERE / "compact_card_limits.md").read_text(encoding="utf-8").rstrip()]
    (work / "compact/README.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def real(found: Found) -> list[str]:
    """The sections on real objects."""
    curves = found["real"]["photometry"]
    text = [
        "## Real held-back objects",
        "",
        f"Light curves in the test quarter: {listed(curves['full']['counts'])}. Brackets are 95 % intervals "
        "over objects. AUC of SN II against SN I from light curves; the forest (docs/photometry_real.md) was "
        "fitted at each horizon by itself:",
        "",
    ]
    text += table("learned from", *curves)
    for title, key in _LEARNED:
        cells = [value(found[key]["photometry"][h], "auc SN I/SN II") for h in curves]
        text.append(f"| {title} | {' | '.join(cells)} |")
    text.append(_forest("photometry", tuple(curves)))
    text += ["", "All five classes, this set:", "", *sweep(found["real"], ("photometry",)), ""]
    text += [
        "Spectra with a redshift, the seven classes of supernovae (fine, and as SN I or SN II); the forest "
        "is that of docs/spectra_real.md:",
        "",
    ]
    for unit in ("by spectrum", "by object"):
        rows = found["spectra"]["real"][unit]["rows"]
        text += table(f"{unit} ({rows}), learned from", *(title for title, _, _ in _SPECTRA))
        for title, key in _LEARNED:
            one = found["spectra"][key][unit]
            cells = [value(one[level], name) for _, level, name in _SPECTRA]
            text.append(f"| {title} | {' | '.join(cells)} |")
        text += [_forest(unit, tuple(title for title, _, _ in _SPECTRA)), ""]
    return text + triplets(found) + paper(found)


def triplets(found: Found) -> list[str]:
    """The section on real stamps."""
    text = ["## Real labelled triplets", "", _TRIPLETS, ""]
    names = ("accuracy", "balanced_accuracy", "macro_auc", "auc SN I/SN II", "ece")
    text += table("learned from", "objects", *names)
    ceiling = found["simulated"]["image"]["30d"]
    for title, one in {**found["triplets"], "the ceiling: simulated test objects, 30 d": ceiling}.items():
        text.append(f"| {title} | {one['objects']} | {' | '.join(value(one, n) for n in names)} |")
    return [*text, "", f"Objects: {listed(next(iter(found['triplets'].values()))['counts'])}.", ""]


def paper(found: Found) -> list[str]:
    """The paper's figures beside those of the set on real objects."""
    curves, stamps = found["real"]["photometry"]["30d"], next(iter(found["triplets"].values()))
    spectra = found["spectra"]["real"]["by spectrum"]["seven"]
    text = ["## The paper's figures beside these", "", _PAPER, "", *table("", "paper", "this set")]
    rows = [
        ("light curves at 30 d, accuracy, five classes", "0.88", value(curves, "accuracy")),
        ("light curves at 30 d, macro-AUC, five classes", "0.97", value(curves, "macro_auc")),
        *((f"stamps and metadata, AUC {c}", p, value(stamps, f"auc {c}"))
          for c, p in (("SN I", "0.83"), ("SN II", "0.76"), ("CV", "0.99"), ("AGN", "0.99 (nuclear)"))),
        ("spectra, accuracy (paper nine classes, here seven)", "0.870", value(spectra, "accuracy")),
        ("spectra, AUC (paper of every class, here the mean)", "0.96 and more", value(spectra, "macro_auc")),
    ]  # fmt: skip
    return [*text, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _forest(what: str, columns: tuple[str, ...]) -> str:
    """A row of the card with a forest's figures, as the page that measured them has them."""
    page, heading, row = _FORESTS[what]
    lines = (_DOCS / page).read_text(encoding="utf-8").split(f"{heading}\n", 1)[1].splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    named = dict(zip(cells[0], next(c for c in cells if c[0] == row), strict=True))
    return f"| {row} (real alone) | {' | '.join(named[column] for column in columns)} |"


def sweep(found: Found, which: tuple[str, ...]) -> list[str]:
    """A row per modality and horizon."""
    names = ("accuracy", "balanced_accuracy", "macro_auc", "auc SN I/SN II")
    text = table("", "objects", *names, "ECE before", "ECE after")
    for what in which:
        for horizon, one in found.get(what, {}).items():
            ece = f"{one['ece_before']:.3f} | {one['measures']['ece']:.3f}"
            cells = " | ".join(value(one, n) for n in names)
            text.append(f"| {what}, {horizon} | {one['objects']} | {cells} | {ece} |")
    return text


def table(*titles: str) -> list[str]:
    """The head of a Markdown table."""
    names = [title.replace("_", " ").replace("auc", "AUC") for title in titles]
    return [f"| {' | '.join(names)} |", "|---" * len(titles) + "|"]


def listed(counts: dict[str, int]) -> str:
    """Classes and their numbers."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def value(found: Found, name: str) -> str:
    """A measure with its interval."""
    if name not in found.get("measures", {}):
        return "–"
    interval = found["intervals"].get(name)
    bracket = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return f"{found['measures'][name]:.3f}{bracket}"
