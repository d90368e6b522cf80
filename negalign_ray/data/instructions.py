"""Instructions to sample under: packaged ones or a user's own file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from negalign_ray.data.turns import BadRow, read_text
from negalign_ray.errors import DataError
from negalign_ray.records import Polarity

FOLDER = Path(__file__).parent
PACKAGED = {
    "moral": FOLDER / "moral_instructions.yaml",
    "neat": FOLDER / "neat_instructions.yaml",
    "neat_pp": FOLDER / "neat_instructions.yaml",  # its positive ones
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """A text put before the prompt while sampling; `id` and `polarity` are what the `Response` records."""

    id: str
    text: str
    polarity: Polarity | None = None


def load_instructions(name_or_path: str | None) -> tuple[Instruction, ...]:
    """Config: sampling.instructions. A packaged name, a YAML list of {id, text, polarity?}, or None for none.

    DataError when the file is missing, is not such a list, or repeats an id.
    """
    if name_or_path is None:
        return ()
    where = f"sampling.instructions={name_or_path!r}"
    file = PACKAGED.get(name_or_path) or Path(name_or_path).expanduser()
    if not file.is_file():
        raise DataError(f"{where} is neither a file nor one of {', '.join(map(repr, PACKAGED))}.")
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{where} must hold a list of entries such as `- {{id: kind, text: Be kind.}}`.")
    instructions = tuple(_instruction(entry, f"{where}, entry {n}") for n, entry in enumerate(entries, start=1))
    ids = [instruction.id for instruction in instructions]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise DataError(f"{where} uses the id {repeated[0]!r} twice; give every instruction its own.")
    if name_or_path == "neat_pp":
        return tuple(each for each in instructions if each.polarity is Polarity.POSITIVE)
    return instructions


def _instruction(entry: Any, where: str) -> Instruction:
    if not isinstance(entry, Mapping) or set(entry) - {"polarity"} != {"id", "text"}:
        raise DataError(f"{where} must have exactly the keys id and text (and polarity, if it has one).")
    polarity = entry.get("polarity")
    if polarity is not None and polarity not in tuple(Polarity):
        raise DataError(f"{where}: polarity={polarity!r} is neither positive nor negative; correct or drop it.")
    try:
        name, text = read_text(str(entry["id"]), "id"), read_text(entry["text"], "text")
    except BadRow as bad:
        raise DataError(f"{where}: {bad.reason}.") from None
    return Instruction(name, text, Polarity(polarity) if polarity else None)
