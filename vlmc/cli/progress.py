"""Passes as they run, on stderr: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmc.workspace import Event


@contextmanager
def shown(
    name: str,
) -> Iterator[tuple[Callable[[Event], None], Callable[[int, int], None]]]:
    """Gives a build's ``progress`` and ``bytes_done`` callbacks, for a bundle of that name."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from vlmc.cli.sizes import size_text

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        running = bar.add_task("", total=None, visible=False)

        def progress(event: Event) -> None:
            if event.kind == "started":
                bar.reset(running, total=None, visible=True, description=f"{name}: {event.step}")
            elif event.kind == "notice":
                bar.print(f"  {event.step}: {event.message}")
            elif event.record is not None:
                record = event.record
                size = size_text(record.size) if record.size else ""
                hit = "cached" if record.hit else f"{record.seconds:.1f} s"
                bar.update(running, visible=False)
                bar.print(f"  {record.name:<10} {hit:>8}  {size:>10}")

        def bytes_done(done: int, total: int) -> None:
            bar.update(running, completed=done, total=total)

        yield progress, bytes_done
