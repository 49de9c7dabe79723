"""What kinds of parameters there are: people divide optimizers and their groups by them.

=============  =========================================================================
``matrix``     two dimensions or more: weights of linear layers, convolutions
``embedding``  the same of an ``nn.Embedding``
``vector``     fewer dimensions: biases, gates, scales
``norm``       the same of a normalisation layer
=============  =========================================================================
"""

from __future__ import annotations

from torch import Tensor, nn

MATRIX, EMBEDDING, VECTOR, NORM = "matrix", "embedding", "vector", "norm"
ALIKE = {kind: alike for alike in ((MATRIX, EMBEDDING), (VECTOR, NORM)) for kind in alike}
"""Kind -> the kinds that are nearest to it, itself included."""

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def kind_of(module: nn.Module, parameter: Tensor) -> str:
    """The kind of a parameter that ``module`` itself holds."""
    if parameter.dim() >= 2:
        return EMBEDDING if isinstance(module, _EMBEDDINGS) else MATRIX
    # Many models bring a norm of their own: LlamaRMSNorm, Qwen2RMSNorm, LayerNorm2d.
    is_norm = isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
    return NORM if is_norm else VECTOR


def kinds_in(module: nn.Module) -> dict[str, tuple[nn.Parameter, str]]:
    """Name -> parameter and kind, of all that are trainable in ``module``, each once."""
    found: dict[str, tuple[nn.Parameter, str]] = {}
    seen: set[int] = set()
    for path, part in module.named_modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{path}.{name}" if path else name] = parameter, kind_of(part, parameter)
    return found
