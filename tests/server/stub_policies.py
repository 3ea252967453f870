"""Policies without adapters, for tests of everything around them."""

from collections.abc import Iterator
from contextlib import contextmanager

from buffer.records import Release
from buffer.store import StoreUnavailable
from server.engine.client import EngineClient
from server.errors import PolicyNotResident, ReleaseRefused, ServerError


class StubPolicies:
    """Counts leases; `bad` holds the versions whose install fails, `errors` those at which it fails so."""

    def __init__(self, engine: EngineClient) -> None:
        self.resident: set[int] = {0}
        self.leases: dict[int, int] = {}
        self.bad: set[int] = set()
        self.errors: dict[int, ServerError | StoreUnavailable] = {}
        self.tried: list[int] = []
        self.installed: list[int] = []

    def name(self, version: int) -> str:
        return f"apprentice@{version:06d}"

    @contextmanager
    def lease(self, version: int) -> Iterator[str]:
        if version not in self.resident:
            raise PolicyNotResident(f"policy {version} is not loaded")
        self.leases[version] = self.leases.get(version, 0) + 1
        try:
            yield self.name(version)
        finally:
            self.leases[version] -= 1

    async def install(self, release: Release) -> None:
        self.tried.append(release.version)
        if release.version in self.errors:
            raise self.errors[release.version]
        if release.version in self.bad:
            raise ReleaseRefused(f"the probe of {release.version} differs")
        self.installed.append(release.version)
        self.resident.add(release.version)

    async def retire(self, version: int) -> None:
        self.resident.discard(version)
