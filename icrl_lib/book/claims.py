"""Claims that are executed: each holds, or the chapter stops with an error."""

from __future__ import annotations

import numpy as np
import torch

from icrl_lib.checks import check_instance, check_number, tell


def claim(
    label: str,
    value: float | bool | np.ndarray | torch.Tensor,
    *,
    below: float | None = None,
    above: float | None = None,
    equals: float | None = None,
    tolerance: float | None = None,
) -> None:
    """Check a statement about numbers and print one line that says that it holds.

    The line shows the label and the bound but not the value, whose last digits differ from machine
    to machine. A label starts with its source, the numbered item of the paper or "Measured",
    and a colon: the book's ledger of claims is collected from these lines.

    Parameters
    ----------
    label : str
        ``"source: statement"``.
    value : number, bool, array or Tensor
        What was computed; of several numbers, each has to satisfy the bound. Without a bound
        it has to be True. Numbers are compared in double precision, whatever they are stored in.
    below, above : float, optional
        Strict bounds. Both together give an interval.
    equals, tolerance : float, optional
        The value is within `tolerance` of `equals`, or equal to it when there is no tolerance.

    Raises
    ------
    AssertionError
        If the claim does not hold; NaN satisfies no claim.
    ValueError
        If the label has no source, or the bounds do not say one thing.
    """
    check_instance("label", label, str)
    source, colon, statement = label.partition(": ")
    if not (source and colon and statement.strip()) or "\n" in label:
        raise ValueError(f"label: expected one line 'source: statement', got {label!r}")
    if (below is not None or above is not None) and equals is not None:
        raise ValueError("equals: cannot be combined with below or above")
    if tolerance is not None:
        check_number("tolerance", tolerance, at_least=0)
        if equals is None:
            raise ValueError("tolerance: expected a value in equals beside it")
    for name, bound in (("below", below), ("above", above), ("equals", equals)):
        if bound is not None:
            check_number(name, bound)
    if isinstance(value, torch.Tensor) and not value.is_meta:
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    values = np.asarray(None if isinstance(value, torch.Tensor) else value)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"value: expected real numbers or truth values, got {value!r:.200}")
    if values.size == 0:
        raise ValueError("value: expected at least one number, got none")
    if values.dtype.kind in "iu" and max(-int(values.min()), int(values.max())) > 2**53:
        raise ValueError(f"value: expected integers up to 2^53 in size, got {_range(values)}")
    # In a type of their own small integers wrap around, and a float32 near 0.1 equals 0.1.
    exact = values.astype(np.float64)

    conditions: list[tuple[str, np.ndarray]] = []
    if above is not None:
        conditions.append((f"above {above:g}", exact > above))
    if below is not None:
        conditions.append((f"below {below:g}", exact < below))
    if equals is not None and tolerance is None:
        conditions.append((f"exactly {equals:.12g}", exact == equals))
    elif equals is not None:
        conditions.append((f"{equals:g} ± {tolerance:g}", np.abs(exact - equals) <= tolerance))
    if not conditions:
        if values.dtype != bool:
            raise ValueError("value: expected True or False where no bound is given")
        conditions.append(("true", values))
    bound = " and ".join(words for words, _ in conditions)
    if not all(np.all(holds) for _, holds in conditions):
        raise AssertionError(f"claim fails: {label} ({bound}), got {_range(values)}")
    tell(f"✓ {label} ({bound})")


def _range(values: np.ndarray) -> str:
    if values.size == 1:
        return str(values.item())
    return f"values from {values.min()} to {values.max()}"
