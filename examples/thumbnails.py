"""Thumbnails, made on all cores: a plain `def` that computes runs in child processes. Needs Pillow.

    pip install pillow
    THUMBNAILS=/tmp/thumbnails asyncpar run examples.thumbnails:app

A record is an image: its bytes are the value, its name is the key. Versions of one image come in their order,
other images are made at the same time. What is no image becomes a dead letter on `images.dlq` at once. An
image that ends its process (a fault in C code, say) is tried once more, and becomes a dead letter when it
does that again; one that takes too long is ended with its process, and tried again.
"""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from PIL import Image, UnidentifiedImageError

from asyncpar import App, Context, Key, Permanent

LARGEST = (128, 128)
MEMORY_BYTES = 2 * 2**30


@contextmanager
def in_each_child() -> Iterator[Path]:
    """Entered once in each child process: bound its memory, and say where thumbnails go."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    folder = Path(os.environ.get("THUMBNAILS", "thumbnails"))
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


app = App("thumbnails", group="thumbnails", process_lifespan=in_each_child)


@app.topic("images", executor="process", timeout_ms=20_000, dead_letter=".dlq")
def shrink(image: bytes, name: Annotated[str, Key], context: Context) -> None:
    """Make one thumbnail. Knows nothing of processes; `context.state` is what `in_each_child` yields."""
    folder: Path = context.state
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.thumbnail(LARGEST)
            small = picture.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise Permanent(f"{name} is no image that can be read: {error}") from error
    target = folder / f"{Path(name).name}.webp"
    unfinished = target.with_suffix(f".{os.getpid()}")
    small.save(unfinished, "WEBP")
    unfinished.replace(target)  # nobody sees half a thumbnail, and to make it twice does no harm
    context.logger.info("%s: %d x %d", target.name, *small.size)
