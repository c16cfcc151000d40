"""The protocol that the rest of draftsmith knows of a model, and the backends that implement it."""

from draftsmith.model.protocol import KVCache, Logits, Model, TokenRun

__all__ = ["KVCache", "Logits", "Model", "TokenRun"]
