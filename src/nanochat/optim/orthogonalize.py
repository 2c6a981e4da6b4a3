"""The nearest orthogonal matrix, approximately: an odd polynomial of the matrix, applied a few times, pushes its singular values to 1.

Legend: K matrices stacked, M rows, N columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Keller Jordan's quintic: the steepest slope at 0 that keeps singular values within about 0.7..1.2
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5

# Optimal quintics for singular values in [1e-3, 1], one per step (Amsel et al. 2025, "The Polar Express", section 4.4)
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749518, 0.4188073119525673),
)
GRAM_FROM = 2  # columns per row from which on steps on X X' cost less than steps on X: 57% of the time at 256 x 1024 (reports/log.md)
_SAFETY = 1.01  # each step but the last is damped by this, against rounding beyond 1
POLAR_EXPRESS = (*((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS[:-1]), _POLAR_EXPRESS[-1])


def newton_schulz(matrices: Tensor) -> Tensor:
    """Singular values of each matrix of the stack (K, M, N) to within about 0.7..1.2."""
    return _iterate(matrices, NEWTON_SCHULZ, headroom=1.0)


def polar_express(matrices: Tensor) -> Tensor:
    """Singular values of each matrix of the stack (K, M, N) to near 1, faster for the small ones."""
    return _iterate(matrices, POLAR_EXPRESS, headroom=_SAFETY)


def _iterate(matrices: Tensor, coefficients: tuple[tuple[float, float, float], ...], *, headroom: float) -> Tensor:
    """Apply X -> a X + b (X X') X + c (X X')^2 X for each (a, b, c), after scaling every matrix to spectral norm below 1."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.transpose(-2, -1) if tall else matrices  # the product X X' is then the smaller of the two
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * headroom + 1e-7)
    if x.shape[-1] >= GRAM_FROM * x.shape[-2] and x.dtype in (torch.float32, torch.float64):
        x = torch.bmm(_polynomial_of_gram(x, coefficients), x)
    else:
        for a, b, c in coefficients:
            gram = torch.bmm(x, x.transpose(-2, -1))
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.transpose(-2, -1) if tall else x


def _polynomial_of_gram(x: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """The (K, M, M) that all steps together multiply the wide X with.

    Each step is a polynomial P of G = X X', after which G is P G P: so only M x M matrices are multiplied, and X twice. G holds the squares of the
    singular values, too coarse in bf16.
    """
    gram, total = torch.bmm(x, x.transpose(-2, -1)), None
    for number, (a, b, c) in enumerate(coefficients, start=1):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        total = polynomial if total is None else torch.bmm(polynomial, total)
        if number < len(coefficients):
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
    assert total is not None
    return total


ORTHOGONALIZERS: dict[str, Callable[[Tensor], Tensor]] = {"newton_schulz": newton_schulz, "polar_express": polar_express}
