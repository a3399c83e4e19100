"""A linear layer that is trained, and can also answer as it was before."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class TwoViewLinear(nn.Linear):
    """A linear layer trained in float32 that can also answer with its frozen original.

    The original is kept in the precision it was loaded in; the trained weight is a float32 master, cast
    to the input's precision for the product.
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_buffer("original_weight", base.weight.detach().clone(), persistent=False)
        self.weight = nn.Parameter(base.weight.detach().float().clone())
        self.original_weight: Tensor
        self.original_bias: Tensor | None
        if base.bias is None:
            self.original_bias = None
            self.register_parameter("bias", None)
        else:
            self.register_buffer("original_bias", base.bias.detach().clone(), persistent=False)
            self.bias = nn.Parameter(base.bias.detach().float().clone())
        self.use_original = False

    def originals_as_parameters(self) -> None:
        """Make the frozen original a parameter, which is divided among processes as others are."""
        for name in ("original_weight", "original_bias"):
            frozen = self._buffers.pop(name, None)
            if frozen is not None:
                self.register_parameter(name, nn.Parameter(frozen, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """x: `[..., in_features]` -> `[..., out_features]` in x's dtype."""
        if self.use_original:
            return functional.linear(x, self.original_weight, self.original_bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)
