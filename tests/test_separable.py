import pytest
import torch

from nnunetv2_plgcl.separable import multiply_axes


@pytest.mark.parametrize(
    ("lengths", "equation"),
    [((5,), "bci,ix->bcx"), ((5, 7), "bcij,ix,jy->bcxy"), ((5, 7, 4), "bcijk,ix,jy,kz->bcxyz")],
)
def test_each_axis_is_multiplied_by_its_matrix(lengths, equation):
    maps = torch.rand(2, 3, *lengths, dtype=torch.float64)
    shapes = list(zip(lengths, (6, 2, 3), strict=False))
    matrices = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    expected = torch.einsum(equation, maps, *matrices)
    torch.testing.assert_close(multiply_axes(maps, matrices), expected)
