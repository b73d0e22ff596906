"""The text of an image where it is more than its image tokens."""

from vlmc.bundle.manifest import ImageLayout


def image_text(layout: ImageLayout, rows: int, columns: int, token: str) -> str:
    """The text of one image, with one image token for each tile."""
    tiles, number = "", 0
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            tiles += layout.between if column > 1 else ""
            number += 1
            tiles += layout.tile.format(row=row, column=column, number=number)
            tiles += token + layout.tile_end
        tiles += layout.row_end
    whole = (layout.before_whole if rows else "") + layout.whole + token + layout.end
    if layout.after_whole is None:
        return layout.start + tiles + whole
    return layout.start + whole + (layout.after_whole + tiles if rows else "")
