"""What every surface says of itself, and the OpenAPI document that is made of it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edgeprofile import vendors
from edgeprofile.openapi import batch, insider, intilery, mparticle, native, service
from edgeprofile.openapi.document import Section, document
from edgeprofile.openapi.schemas import Json
from edgeprofile.settings import Settings

__all__ = ["describe", "encoded", "sections"]


def describe(settings: Settings) -> Json:
    """The document of a server with these settings: of the surfaces that are on, and nothing of what they serve."""
    return document(sections(settings))


def encoded(settings: Settings) -> bytes:
    """The same as JSON, which takes longer to make than all else that a worker needs."""
    return msgspec.json.encode(describe(settings))


def sections(settings: Settings) -> Iterator[Section]:
    yield native.SECTION
    if settings.tables_of(vendors.Insider):
        yield insider.SECTION
    if settings.tables_of(vendors.MParticle):
        yield mparticle.SECTION
        yield mparticle.TOKENS
    if settings.tables_of(vendors.Intilery):
        yield intilery.SECTION
    if settings.tables_of(vendors.Batch):
        yield batch.SECTION
    yield service.section(with_page=settings.server.docs)
