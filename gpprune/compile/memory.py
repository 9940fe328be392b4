"""Whether tensors lie in one another's memory, told by their addresses alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether some byte may belong to both of two tensors.

    Exact for vectors and for matrices of contiguous rows. Others count as sharing where the
    ranges of their addresses do.

    Args:
        a: a vector or a matrix.
        b: another one.
    """
    if a.data_ptr() >= _end(b) or b.data_ptr() >= _end(a):
        return False
    if a.device != b.device or a.device.type == "meta" or not a.numel() or not b.numel():
        return False
    return not _interleaved(_rows(a), _rows(b))


def overlaps_itself(matrix: Tensor) -> bool:
    """Whether several elements of a matrix may lie in one place."""
    if matrix.is_contiguous():
        return False
    # a dimension of one element takes no step
    steps = [(s, n) for s, n in zip(matrix.stride(), matrix.shape, strict=True) if n > 1]
    reach = 0
    for step, count in sorted(steps):
        if step <= reach:
            return True
        reach += step * (count - 1)
    return False


@dataclass(frozen=True)
class _Rows:
    """Equally wide stretches of memory, in bytes: the first begins at `start`, then every `step`.

    `step` is 0 for a single one.
    """

    start: int
    step: int
    width: int


def _rows(tensor: Tensor) -> _Rows | None:
    """A tensor as stretches of memory; None where it is none of contiguous rows."""
    matrix = tensor if tensor.dim() == 2 else tensor[None] if _is_dense(tensor) else tensor[:, None]
    if not _is_dense(matrix[0]):
        return None
    size = matrix.element_size()
    step = matrix.stride(0) * size if matrix.shape[0] > 1 else 0
    return _Rows(matrix.data_ptr(), step, matrix.shape[1] * size)


def _is_dense(vector: Tensor) -> bool:
    return vector.stride(0) == 1 or len(vector) == 1


def _interleaved(a: _Rows | None, b: _Rows | None) -> bool:
    """Whether the stretches of one lie in the gaps of the other."""
    if a is None or b is None or (a.step and b.step and a.step != b.step):
        return False
    step = a.step or b.step
    if not step:  # a stretch each
        return False
    after = (b.start - a.start) % step
    return a.width <= after and after + b.width <= step


def _end(tensor: Tensor) -> int:
    """The address behind its last element."""
    if tensor.is_contiguous():
        return tensor.data_ptr() + tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return tensor.data_ptr() + (last + 1) * tensor.element_size()
