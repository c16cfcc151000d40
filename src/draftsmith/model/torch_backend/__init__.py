"""The torch backend: any causal language model of ``transformers``, on any device, behind the Model protocol.

It is imported only when it is asked for, and needs the extra: ``pip install 'draftsmith[torch]'``. What is said of the
native backend's bits does not hold here: see ``docs/backends.md``.
"""

from draftsmith.model.torch_backend.load import TorchOptions, load_torch_model
from draftsmith.model.torch_backend.model import TorchModel

__all__ = ["TorchModel", "TorchOptions", "load_torch_model"]
