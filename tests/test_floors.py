"""Who may import whom: only from one's own floor or a lower one; only the engine imports ray."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "applecider_batch"
FLOORS = {
    "cli": 9,
    "report": 8,
    "engine": 7,
    "training": 7,
    "catalog": 6,
    "inference": 5,
    "models": 4,
    "features": 3,
    "archive": 2,
    "simulate": 2,
}
NO_TORCH = {"features", "archive", "simulate", "catalog", "report"}


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def _room(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def _violations(path: Path, room: str | None) -> list[str]:
    floor = FLOORS[room] if room else 1
    found = []
    for line, name in _imports(path):
        head, _, rest = name.partition(".")
        if head == "ray" and room != "engine":
            found.append(f"{path}:{line}: only engine/ imports ray")
        if head == "torch" and room in NO_TORCH:
            found.append(f"{path}:{line}: {room}/ does not import torch")
        if head == "applecider_batch" and rest:
            target = rest.split(".")[0]
            if FLOORS.get(target, 1) > floor:
                found.append(f"{path}:{line}: floor {floor} imports {target} (floor {FLOORS[target]})")
    return found


def test_imports_go_down() -> None:
    found = [v for path in sorted(PACKAGE.rglob("*.py")) for v in _violations(path, _room(path))]
    assert not found, "\n".join(found)


def test_every_room_has_a_floor() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert rooms == set(FLOORS)


def test_a_violation_is_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import ray\nfrom applecider_batch import engine\nfrom applecider_batch.catalog import rows\n"
    )
    assert len(_violations(wrong, "models")) >= 3
