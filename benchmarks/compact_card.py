"""The card of the set ``compact``: what it learned from, what it is worth, what it must not be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Found = dict[str, Any]

_HEAD = """# Model set `compact`

Small networks for a CPU, packaged with applecider-batch: `classify --models compact`. Made by `make models`
(`python -m benchmarks.compact`); the weights come from that training alone.
"""
_TRIPLETS = """All real objects with labelled stamps; none of them trained this set. *By folds*: the same
network trained on three quarters of them and asked for the rest, stopped where that rest was best, so rather
too good. TDE are three objects."""
_CALIBRATION = """Light curves and fused answers: on validation objects, where the temperatures were fitted.
Spectra: on test spectra. Stamps: on real triplets, each fold by the temperature of the others. Without real
data all are simulated validation objects."""
_LIMITS = Path(__file__).with_name("compact_card_limits.md")
_LEARNED = (
    ("real and simulated (this set)", "real"),
    ("real alone", "only-real"),
    ("simulated alone", "only-simulated"),
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
    text += ["", _LIMITS.read_text(encoding="utf-8").rstrip()]
    (work / "compact/README.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def real(found: Found) -> list[str]:
    """The sections on real objects."""
    curves = found["real"]["photometry"]
    text = [
        "## Real held-back objects",
        "",
        f"Light curves in the test quarter: {listed(curves['full']['counts'])}. Brackets are 95 % intervals "
        "over objects. AUC of SN II against SN I from light curves:",
        "",
    ]
    text += table("learned from", *curves)
    for title, key in _LEARNED:
        cells = [value(found[key]["photometry"][h], "auc SN I/SN II") for h in curves]
        text.append(f"| {title} | {' | '.join(cells)} |")
    text += ["", "All five classes, this set:", "", *sweep(found["real"], ("photometry",)), ""]
    text += ["Spectra with a redshift, the seven classes of supernovae (fine, and as SN I or SN II):", ""]
    text += table("", "spectra or objects", "accuracy, 7 classes", "macro_auc", "accuracy, SN I/SN II")
    for how, one in found["spectra"].items():
        cells = [value(one["seven"], n) for n in ("accuracy", "macro_auc")] + [
            value(one["broad"], "accuracy")
        ]
        text.append(f"| {how} | {one['rows']} | {' | '.join(cells)} |")
    text += ["", "## Real labelled triplets", "", _TRIPLETS, ""]
    names = ("accuracy", "balanced_accuracy", "macro_auc", "auc SN I/SN II", "ece")
    text += table("learned from", "objects", *names)
    for title, one in found["triplets"].items():
        text.append(f"| {title} | {one['objects']} | {' | '.join(value(one, n) for n in names)} |")
    return [*text, "", f"Objects: {listed(next(iter(found['triplets'].values()))['counts'])}.", ""]


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
