"""One self-attention block: linear (eq. 1), the part of it that is read, and with a softmax."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from icrl_lib.checks import check_count, check_number, check_tensors
from icrl_lib.prompts import parameter_column

# P and V of one block, each (D, D); a docstring would make a page of its own for tuple.
Weights = tuple[Tensor, Tensor]


def linear_self_attention(H: Tensor, P: Tensor, V: Tensor) -> Tensor:
    """Apply one block of linear self-attention with a residual connection (eq. 1).

    Prompts H (B, D, n + 1) have one token a column, the parameters last; P (D, D) holds query and
    key weights in one matrix, V (D, D) the value weights. Returns H + (1 / n) (V H) (H^T P H). A
    ValueError says that shapes, dtypes or devices disagree, or that H has a single column, so that
    n = 0.
    """
    sizes = check_tensors(H=(H, "B D columns"), P=(P, "D D"), V=(V, "D D"))
    n = sizes["columns"] - 1
    if n < 1:
        raise ValueError("H: expected at least 2 columns, n tokens and the parameters; got 1")
    return H + (V @ H) @ (H.mT @ P @ H) / n


class Blocks(NamedTuple):
    """The blocks of P and V that can influence the updated parameters (Lemma C.1).

    With k rows for a token and p parameters, P12 (k, 1 + p) and P22 (1 + p, 1 + p) are the right
    blocks of P: token meets parameter column, and the parameter column itself. V21 (p, k), the
    paper's V-bar, and V22 (p, 1 + p) are the lower blocks of V, their first row dropped: from token
    and from parameter column to parameters.
    """

    P12: Tensor
    V21: Tensor
    P22: Tensor
    V22: Tensor


def split(P: Tensor, V: Tensor, n_parameters: int) -> Blocks:
    """Cut the blocks that matter out of P and V (D, D) for p = `n_parameters` parameters."""
    sizes = check_tensors(P=(P, "D D"), V=(V, "D D"))
    check_count("n_parameters", n_parameters)
    k = sizes["D"] - 1 - n_parameters
    if k < 1:
        wanted = f"1 to D - 2 = {sizes['D'] - 2}"
        raise ValueError(f"n_parameters: expected {wanted}, got {n_parameters}")
    return Blocks(P[:k, k:], V[k + 1 :, :k], P[k:, k:], V[k + 1 :, k:])


def join(P12: Tensor, V21: Tensor) -> Weights:
    """Place P12 (k, 1 + p) and V21 (p, k) in matrices P and V (D, D) that are zero elsewhere."""
    sizes = check_tensors(V21=(V21, "p k"), P12=(P12, "k columns"))
    k, p = sizes["k"], sizes["p"]
    if sizes["columns"] != p + 1:
        raise ValueError(f"P12: expected 1 + p = {p + 1} columns, got {sizes['columns']}")
    P = P12.new_zeros(k + 1 + p, k + 1 + p)
    V = torch.zeros_like(P)
    P[:k, k:] = P12
    V[k + 1 :, :k] = V21
    return P, V


def reduced_update(
    tokens: Tensor,
    parameters: Tensor,
    P12: Tensor,
    V21: Tensor,
    P22: Tensor | None = None,
    V22: Tensor | None = None,
) -> Tensor:
    """Compute the updated parameters (B, p) without building H (Lemma C.1, eq. 15).

    From tokens x_i, (B, n, k), parameters (B, p) and the blocks of :class:`Blocks`, P22 and V22
    together or not at all, this is, with w~ = [1; parameters], parameters + V21 (1/n) sum_i x_i
    x_i^T P12 w~ + (1/n) V22 w~ (w~^T P22 w~).
    """
    sizes = check_tensors(
        tokens=(tokens, "B n k"), parameters=(parameters, "B p"), V21=(V21, "p k"), P12=(P12, "k q")
    )
    extended = parameter_column(parameters)  # (B, q), q = 1 + p
    if sizes["q"] != sizes["p"] + 1:
        raise ValueError(f"P12: expected 1 + p = {sizes['p'] + 1} columns, got {sizes['q']}")
    n = sizes["n"]
    query = extended @ P12.mT  # (B, k)
    scalars = query.unsqueeze(1) @ tokens.mT  # (B, 1, n); a row times a matrix is the faster order
    update = (scalars @ tokens).squeeze(1) @ V21.mT / n
    if (P22 is None) != (V22 is None):
        raise ValueError("P22, V22: expected both or neither")
    if P22 is not None and V22 is not None:
        q = sizes["q"]
        check_tensors(parameters=(parameters, "B p"), P22=(P22, f"{q} {q}"), V22=(V22, f"p {q}"))
        form = ((extended @ P22) * extended).sum(-1, keepdim=True)  # w~^T P22 w~
        update = update + form * (extended @ V22.mT) / n
    return parameters + update


def softmax_attention(
    H: Tensor, P: Tensor, V: Tensor, temperature: float = 1.0, *, anchor: bool = False
) -> Tensor:
    """Apply one block of softmax self-attention, any number of heads, with a residual connection.

    The scores of eq. 1 become weights: column by column, a softmax over the columns attended to
    takes the place of the factor 1 / n. P and V, as of :func:`linear_self_attention` but for each
    head, are (heads, D, D). Returns H + sum over heads of (V H) softmax(H^T P H / tau), (B, D, n +
    1), each column of weights summing to 1.

    Parameters
    ----------
    temperature : float
        Positive number tau by which scores are divided.
    anchor : bool
        Attend to the last column too. By default it is masked: it asks, but is never answered from.
    """
    sizes = check_tensors(P=(P, "heads D D"), V=(V, "heads D D"), H=(H, "B D columns"))
    check_number("temperature", temperature, above=0)
    if sizes["columns"] < 2:
        raise ValueError("H: expected at least 2 columns, n tokens and the parameters; got 1")
    keys = H if anchor else H[:, :, :-1]  # (B, D, m)
    keys, queries = keys.unsqueeze(1), H.unsqueeze(1)
    weights = torch.softmax(keys.mT @ P @ queries / temperature, -2)  # (B, heads, m, n + 1)
    return H + (V @ keys @ weights).sum(1)


def softmax_update(
    tokens: Tensor,
    parameters: Tensor,
    P12: Tensor,
    V21: Tensor,
    P22: Tensor | None = None,
    V22: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Compute what softmax heads write to the parameters, without building H.

    The counterpart of :func:`reduced_update`, whose blocks get a leading axis for heads, at
    `temperature` tau. With w~ = [1; parameters] and p_i the softmax of the scores x_i^T P12 w~ /
    tau it returns parameters + sum over heads of sum_i p_i V21 x_i. Without P22 and V22 the
    parameter column is masked; with them it is attended to, as the anchor: the softmax includes the
    score w~^T P22 w~ / tau, whose weight multiplies V22 w~.
    """
    sizes = check_tensors(
        tokens=(tokens, "B n k"),
        parameters=(parameters, "B p"),
        V21=(V21, "heads p k"),
        P12=(P12, "heads k q"),
    )
    check_number("temperature", temperature, above=0)
    extended = parameter_column(parameters)  # (B, q)
    if sizes["q"] != sizes["p"] + 1:
        raise ValueError(f"P12: expected 1 + p = {sizes['p'] + 1} columns, got {sizes['q']}")
    if (P22 is None) != (V22 is None):
        raise ValueError("P22, V22: expected both or neither")
    queries = torch.einsum("hkq,bq->bhk", P12, extended)
    scores = queries @ tokens.mT  # (B, heads, n)
    if P22 is not None and V22 is not None:
        heads, p, q = sizes["heads"], sizes["p"], sizes["q"]
        check_tensors(tokens=(tokens, "B n k"), P22=(P22, f"{heads} {q} {q}"))
        check_tensors(tokens=(tokens, "B n k"), V22=(V22, f"{heads} {p} {q}"))
        form = torch.einsum("bq,hqr,br->bh", extended, P22, extended)
        scores = torch.cat([scores, form.unsqueeze(-1)], -1)
    weights = torch.softmax(scores / temperature, -1)
    n = sizes["n"]
    seen = weights[..., :n] @ tokens  # (B, heads, k), the weighted mean token
    updated = parameters + torch.einsum("hpk,bhk->bp", V21, seen)
    if V22 is not None:
        updated = updated + torch.einsum("bh,hpq,bq->bp", weights[..., n], V22, extended)
    return updated


def iterate(H: Tensor, P: Tensor, V: Tensor, passes: int) -> Tensor:
    """Apply a block `passes` = L >= 1 times: a transformer whose layers share the weights P and V.

    Prompts H are (B, D, n + 1), as is what the last layer writes. With P12 and V21 alone different
    from zero the token columns stay as they are, and the parameters are updated L times on one
    window.
    """
    check_count("passes", passes)
    for _ in range(passes):
        H = linear_self_attention(H, P, V)
    return H
