"""Titled blocks of lines, and which of their lines fit on a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.box import ROUNDED
from rich.console import RenderableType
from rich.panel import Panel
from rich.text import Text

EDGE = 4  # columns of a block that are not its lines
BORDER = 2  # lines of a block that are not its own
BORDER_STYLE = "bright_black"


@dataclass(frozen=True, slots=True)
class Block:
    title: str
    lines: tuple[Text, ...]
    priority: int = 0  # blocks of a lower one are cut first
    keeps: int = 0  # lines that stay when it is cut
    is_whole: bool = False  # it stays whole, or goes
    is_vital: bool = False  # rather show less in it than cut it
    keeps_last: bool = False  # when it is cut, its last lines stay instead of its first ones
    footer: str = ""

    @property
    def height(self) -> int:
        return len(self.lines) + BORDER if self.lines else 0

    def cut(self, num_lines: int) -> "Block":
        """Without `num_lines` of its lines."""
        if self.is_whole or num_lines >= len(self.lines):
            return replace(self, lines=())
        return replace(self, lines=self.lines[num_lines:] if self.keeps_last else self.lines[:-num_lines])


def fit(blocks: Sequence[Block], height: int | None) -> list[Block]:
    """Those with lines, in at most `height` lines: lines go first, down to what a block keeps, then whole blocks."""
    fitted = list(blocks)
    by_priority = sorted(range(len(fitted)), key=lambda index: fitted[index].priority)
    for may_go in (False, True):
        for index in by_priority:
            block = fitted[index]
            excess = 0 if height is None else sum(each.height for each in fitted) - height
            spare = len(block.lines) if block.is_whole or may_go else len(block.lines) - block.keeps
            if excess > 0 and spare > 0:
                fitted[index] = block.cut(len(block.lines) if may_go else min(spare, excess))
    return [block for block in fitted if block.lines]


def panel(block: Block, width: int) -> RenderableType:
    lines = Text("\n", no_wrap=True, overflow="ellipsis").join(block.lines)
    return Panel(
        lines,
        title=Text(block.title, style="bold") if block.title else None,
        title_align="left",
        subtitle=Text(block.footer, style="dim") if block.footer else None,
        subtitle_align="right",
        box=ROUNDED,
        border_style=BORDER_STYLE,
        width=width,
    )


def cells(*parts: tuple[str, int, str]) -> Text:
    """(text, width, style) side by side, one column apart; a negative width is set to the right. Too long is cut."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for index, (text, width, style) in enumerate(parts):
        cell = Text(text, style=style)
        cell.truncate(abs(width), overflow="ellipsis", pad=width > 0)
        if width < 0:
            cell.pad_left(-width - cell.cell_len)
        line.append(" " if index else "").append_text(cell)
    return line
