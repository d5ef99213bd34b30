"""Which pictures, sounds and files the lines of a run may name, and how they are read. Without Beam.

A line may name objects of the bucket that its own file is in, and what ``--media-from`` allows by name. A name that is
no ``r2://`` one, and in no such place, is sent as it is: a provider may fetch it, llmdo does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmdo.backends.errors import short
from llmdo.backends.media.errors import MediaAway, MediaChanged, MediaNotAllowed, MediaOutage, MediaUnusable
from llmdo.backends.media.kinds import Medium
from llmdo.backends.media.loader import Looked, MediaStore
from llmdo.backends.media.parts import renamed, shown_name
from llmdo.backends.requests import MediaReference, Request
from llmdo.settings.environment import MissingSettings
from llmdo.storage.errors import (
    AccessDenied,
    BucketNotFound,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    TooManyBytes,
    is_passing,
)
from llmdo.storage.media.places import (
    MediaAddress,
    MediaPlace,
    bucket_of,
    file_address,
    is_file_url,
    is_r2,
    media_place,
    own_place,
    r2_address,
    web_address,
)
from llmdo.storage.objects.store import R2_SCHEME

if TYPE_CHECKING:
    from llmdo.storage.media.objects import MediaObjects

# OpenAI takes images of 20 MB, and documents of 50 MB (developers.openai.com/docs/guides/images-vision, pdf-files).
MAX_MEDIA_BYTES = 20_000_000
# As a place: not even the input's own bucket.
NO_MEDIA = "none"


@dataclass(frozen=True, slots=True)
class MediaSettings:
    """Where the lines of a run may name media.

    Attributes:
        places: as ``media_place`` reads them, or NO_MEDIA, by which a line's own bucket is not one.
        buckets: names of those that the run's files are in; a line's own one counts without.
        max_bytes: of one object.
    """

    places: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    max_bytes: int = MAX_MEDIA_BYTES

    def open(self) -> MediaStore:
        """See MediaSource."""
        from llmdo.storage.media.objects import MediaObjects  # noqa: PLC0415  options must load without HTTP

        return _Media(self.max_bytes, MediaObjects(self.max_bytes))

    def marked(self, request: Request, store_url: str) -> Request:
        """A request with MediaReferences where the names stand that its line may use; the same one without any.

        ``store_url``: where the line's file is. Raises MediaNotAllowed.
        """
        return renamed(request, self._rename(store_url))

    def _rename(self, store_url: str) -> Callable[[str, Medium, bool], str]:
        def rename(name: str, medium: Medium, may_be_bytes: bool) -> str:
            if name.startswith("data:"):
                return name
            address = self._address(name, store_url, may_be_bytes=may_be_bytes)
            if address is None:
                return name
            if address.is_web:
                return MediaReference.of(name, "", name, medium)
            return MediaReference.of(name, address.store, address.key, medium)

        return rename

    def _address(self, name: str, store_url: str, *, may_be_bytes: bool) -> MediaAddress | None:
        if is_r2(name):
            address = r2_address(name)
            if address is None:
                raise MediaNotAllowed(
                    f"{short(name)} names no object: write r2://BUCKET/KEY, with the key as it is, without '.' or '..' "
                    "between slashes"
                )
            if not any(place.holds(address.store, address.key) for place in self._places(store_url)):
                raise _not_allowed(name, f"r2://{bucket_of(name)}/")
            return address
        places = [media_place(place) for place in self.places if place != NO_MEDIA]
        if (web := web_address(name)) is not None:
            return web if any(place.holds(web.store, web.key) for place in places) else None
        folders = [place.store for place in places if place.store.startswith("/")]
        for folder in folders:
            if (found := file_address(name, folder)) is not None:
                return found
        # Base64 may begin with a slash, too.
        if folders and (is_file_url(name) or (name.startswith("/") and not may_be_bytes)):
            raise _not_allowed(name, "FOLDER")
        return None

    def _places(self, store_url: str) -> Iterator[MediaPlace]:
        if NO_MEDIA not in self.places:
            if store_url.startswith(R2_SCHEME):
                yield MediaPlace(store_url)
            yield from map(own_place, self.buckets)
        yield from (media_place(place) for place in self.places if place != NO_MEDIA)


def _not_allowed(name: str, place: str) -> MediaNotAllowed:
    return MediaNotAllowed(
        f"the line names {short(shown_name(name))}, and this run was not given that place: allow it with --media-from "
        f"{place}, also for this line with llmdo retry OUTPUT --media-from {place}"
    )


class _Media:
    """The objects, with errors as they are to end lines, or the run."""

    def __init__(self, max_bytes: int, objects: MediaObjects) -> None:
        self.max_bytes = max_bytes
        self._objects = objects

    def look(self, reference: MediaReference) -> Looked:
        """See MediaStore."""
        with self._errors(reference):
            return Looked(*self._objects.look(reference.store, reference.key))

    def read(self, reference: MediaReference) -> bytes:
        """See MediaStore."""
        with self._errors(reference):
            return self._objects.read(reference.store, reference.key, reference.version)

    @contextmanager
    def _errors(self, reference: MediaReference) -> Iterator[None]:
        try:
            yield
        except TooManyBytes as error:
            raise MediaUnusable(
                f"{error}, and --max-media-bytes allows {self.max_bytes:,}: raise it, or store a smaller one"
            ) from error
        except ObjectNotFound as error:
            raise MediaUnusable(str(error)) from error
        except ObjectChanged as error:
            raise MediaChanged(f"{shown_name(reference.place)} was replaced while it was read: try again") from error
        except MissingSettings as error:
            raise MediaAway(str(error)) from error
        except StorageError as error:
            if is_passing(error):
                raise MediaOutage(str(error)) from error
            whole = isinstance(error, BucketNotFound | AccessDenied) and reference.store.startswith(R2_SCHEME)
            raise (MediaAway if whole else MediaUnusable)(str(error)) from error
