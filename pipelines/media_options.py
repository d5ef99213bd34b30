"""Options that say where lines may name pictures, sounds and files, and how large these may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from llmdo.pipelines.shown import INPUT
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.media.places import media_place
from llmdo.storage.objects.store import R2_SCHEME, locate
from llmdo.transforms.media import NO_MEDIA, MediaSettings


def _media_places(value: tuple[str, ...]) -> tuple[str, ...]:
    """Absolute paths in the place of relative ones: workers may have another folder of work."""
    try:
        return tuple(place if place == NO_MEDIA else media_place(place).url for place in value)
    except InvalidLocation as error:
        raise ValueError(str(error)) from None


MediaFrom = Annotated[
    tuple[str, ...],
    AfterValidator(_media_places),
    INPUT(
        "Where lines may name images, audio and files, besides their own bucket: r2://BUCKET/PREFIX/, "
        "https://HOST/PREFIX/, a folder; none: not there either. May be repeated.",
        unquoted=True,
    ),
]
MaxMediaBytes = Annotated[int, Field(ge=1), INPUT("Bytes of an image, audio or file that a line names at most.")]


def media_settings(places: tuple[str, ...], files: Sequence[str], max_bytes: int) -> MediaSettings:
    """What lines may name in a run over ``files``, whose buckets are such places, too."""
    buckets = sorted({locate(name).bucket for name in files if name.startswith(R2_SCHEME)})
    return MediaSettings(places, tuple(buckets), max_bytes)
