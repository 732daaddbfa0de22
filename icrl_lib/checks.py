"""Validation at the public edge: bad input is refused by name, before any work is done."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real
from typing import Any

import torch

DTYPES = (torch.float32, torch.float64)
"""What the library computes in: in half precision a row of zeros sums to 1 within rounding."""


def check_tensors(**arguments: tuple[torch.Tensor, str]) -> dict[str, int]:
    """Check that tensors have the named shapes, agree with each other, and hold finite numbers.

    Each argument is a value and its shape as space-separated axis names, for example ``w=(w, "B
    d")``. An axis name stands for one size wherever it occurs; a number stands for itself. Returns
    the size of every named axis. A ValueError names the argument that is no tensor as
    `check_tensor` wants it, has another shape, or differs from the first in dtype or device, and
    says what was expected and what was given.
    """
    sizes: dict[str, tuple[int, str]] = {}
    reference: tuple[str, torch.Tensor] | None = None
    for name, (value, shape) in arguments.items():
        check_tensor(name, value)
        if reference is None:
            reference = (name, value)
        for attribute in ("dtype", "device"):
            expected, given = getattr(reference[1], attribute), getattr(value, attribute)
            if given != expected:
                wanted = f"the {attribute} of {reference[0]}, {expected}"
                raise ValueError(f"{name}: expected {wanted}; got {given}")
        axes = shape.split()
        if value.ndim != len(axes):
            wanted = f"{len(axes)} axes ({', '.join(axes)})"
            raise ValueError(f"{name}: expected {wanted}, got shape {tuple(value.shape)}")
        for axis, size in zip(axes, value.shape, strict=True):
            expected, origin = (int(axis), "") if axis.isdigit() else sizes.get(axis, (size, ""))
            if size != expected:
                wanted = f"({', '.join(axes)}) with {axis} = {expected}"
                wanted += f" as in {origin}" if origin else ""
                raise ValueError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
            sizes.setdefault(axis, (size, name))
    return {axis: size for axis, (size, _) in sizes.items()}


def check_tensor(name: str, value: torch.Tensor) -> None:
    """Raise a ValueError unless `value` is a non-empty dense tensor of finite floats (`DTYPES`)."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise ValueError(f"{name}: expected float32 or float64, got dtype {value.dtype}")
    if value.numel() == 0:
        raise ValueError(f"{name}: expected a non-empty tensor, got shape {tuple(value.shape)}")
    if value.layout != torch.strided or value.is_meta:
        given = f"{value.layout} on {value.device}"
        raise ValueError(f"{name}: expected a dense tensor that holds numbers, got {given}")
    # One reduction settles the usual case; a sum that overflows is looked at entry by entry.
    if not math.isfinite(value.detach().sum()) and not torch.isfinite(value).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def check_distribution(name: str, probabilities: torch.Tensor) -> None:
    """Raise a ValueError unless the last axis of `probabilities` holds distributions."""
    tolerance = 8 * probabilities.shape[-1] * torch.finfo(probabilities.dtype).eps
    if probabilities.min() < 0:
        raise ValueError(f"{name}: expected probabilities, got a negative number")
    error = (probabilities.sum(-1) - 1).abs().max().item()
    if error > tolerance:
        raise ValueError(f"{name}: expected rows that sum to 1, got a row that is off by {error:g}")


def check_number(
    name: str,
    value: float,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    less_than: float = math.inf,
    nonzero: bool = False,
) -> float:
    """Return `value` as a float, or raise a ValueError unless it is finite and within bounds."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    wanted = [
        (value >= at_least, f"at least {at_least}"),
        (value > above, f"above {above}"),
        (value <= at_most, f"at most {at_most}"),
        (value < less_than, f"less than {less_than}"),
        (not nonzero or value != 0, "other than 0"),
    ]
    for holds, words in wanted:
        if not holds:
            raise ValueError(f"{name}: expected a number {words}, got {value!r}")
    return float(value)


Discount = float | torch.Tensor
"""A discount gamma in [0, 1), or one for each transition, shape (B, n), in [0, 1]."""


def check_discount(discount: Discount, rewards: torch.Tensor) -> Discount:
    """Raise a ValueError unless `discount` suits checked rewards (B, n).

    Returns it as it is multiplied with features (B, n, d): a number, or a tensor (B, n, 1).
    """
    if not isinstance(discount, torch.Tensor):
        check_number("discount", discount, at_least=0, less_than=1)
        return discount
    check_tensors(rewards=(rewards, "B n"), discount=(discount, "B n"))
    if discount.min() < 0 or discount.max() > 1:
        raise ValueError("discount: expected numbers from 0 to 1, got others")
    return discount.unsqueeze(-1)


def check_count(name: str, value: int, at_least: int = 1) -> int:
    """Return `value` as an int, or raise a ValueError unless it is an integer of that size."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ValueError(f"{name}: expected an integer of at least {at_least}, got {value!r}")
    return int(value)


def settle_counts(record: object, *names: str, at_least: int = 1) -> None:
    """Check integer fields of a frozen dataclass while it is made, and make each an ``int``."""
    for name in names:
        object.__setattr__(record, name, check_count(name, getattr(record, name), at_least))


def settle_numbers(record: object, *names: str, **bounds: Any) -> None:
    """Check real fields of a frozen dataclass while it is made, and make each a ``float``.

    So np.float32(1), Fraction(1) and 1 describe one configuration, and all can be stored.
    """
    for name in names:
        value = check_number(name, getattr(record, name), **bounds)
        object.__setattr__(record, name, value)


def check_indices(
    name: str, value: torch.Tensor, sizes: tuple[int | str, ...], below: int, device: torch.device
) -> None:
    """Raise a ValueError unless `value` holds int64 numbers from 0 to `below` - 1 on `device`.

    `sizes` are those of its axes, with a letter for an axis that may have any size.
    """
    shape = f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"
    if (
        not isinstance(value, torch.Tensor)
        or value.dtype != torch.int64
        or value.ndim != len(sizes)
        or value.numel() == 0
        or any(
            size not in (given, str(size)) for size, given in zip(sizes, value.shape, strict=True)
        )
    ):
        raise ValueError(f"{name}: expected an int64 tensor of shape {shape}, got {value!r:.200}")
    if value.device != device:
        raise ValueError(f"{name}: expected {device}, got {value.device}")
    low, high = (end.item() for end in value.aminmax())
    if low < 0 or high >= below:
        raise ValueError(f"{name}: expected numbers from 0 to {below - 1}, got {low} to {high}")


def check_generator(generator: torch.Generator) -> None:
    """Raise a ValueError unless `generator` is a ``torch.Generator``."""
    if not isinstance(generator, torch.Generator):
        given = f"{type(generator).__name__}; make one with torch.Generator().manual_seed(0)"
        raise ValueError(f"generator: expected a torch.Generator, got {given}")


def check_dtype(dtype: torch.dtype) -> None:
    """Raise a ValueError unless `dtype` is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")


def check_device(device: torch.device | str) -> None:
    """Raise a ValueError unless tensors can be made on `device`."""
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device: expected a device of this machine, got {device!r}") from error


def check_instance(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """Raise a ValueError unless `value` is of the type `kind`, or of one of several."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{name}: expected {names}, got {value!r:.200}")


def tell(line: str) -> None:
    """Print a line; signs that the encoding of standard output lacks are printed by their names."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "namereplace").decode(encoding))
