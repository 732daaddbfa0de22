"""Students: what is trained, as ``torch.nn.Module`` s from tokens and parameters to parameters.

A student is any module whose ``forward(tokens, parameters)`` maps tokens (B, n, k) and parameters
(B, p) to updated parameters (B, p). `icrl_lib.training.train` takes those below and your own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icrl_lib.algorithms import Algorithm
from icrl_lib.attention import join, linear_self_attention, reduced_update, softmax_update, split
from icrl_lib.checks import check_count, check_dtype, check_generator, check_instance, check_number
from icrl_lib.loop import Update
from icrl_lib.prompts import assemble


def as_update(algorithm: Algorithm, student: nn.Module) -> Update:
    """Return a student as what `interact` and `improve` take: (parameters, observation) -> (B, p).

    The student reads what the algorithm's tokens show of the observation.
    """
    check_instance("algorithm", algorithm, Algorithm)
    if not callable(student):
        raise ValueError(f"student: expected a torch.nn.Module, got {student!r:.200}")
    return lambda parameters, observation: student(algorithm.tokens(observation), parameters)


def _xavier(
    *shape: int, gain: float, generator: torch.Generator, dtype: torch.dtype
) -> nn.Parameter:
    """Draw a Xavier-normal matrix, or one for each head."""
    check_number("gain", gain, at_least=0)
    check_generator(generator)
    check_dtype(dtype)
    drawn = torch.empty(shape, dtype=dtype, device=generator.device)
    for matrix in drawn.reshape(-1, *shape[-2:]):
        nn.init.xavier_normal_(matrix, gain=gain, generator=generator)
    return nn.Parameter(drawn)


class LinearBlock(nn.Module):
    """The linear block in its reduced form: the two blocks that training moves (Lemma C.1).

    P12 (k, 1 + p), token meets parameter column, and V21 (p, k), token to parameters, have the
    sizes that `algorithm` needs. They are Xavier-normal with `gain` at first, drawn with
    `generator`, whose device is theirs.
    """

    P12: nn.Parameter
    V21: nn.Parameter

    def __init__(
        self,
        algorithm: Algorithm,
        gain: float = 0.1,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_instance("algorithm", algorithm, Algorithm)
        for name, shape in self._shapes(algorithm).items():
            drawn = _xavier(*shape, gain=gain, generator=generator, dtype=dtype)
            self.register_parameter(name, drawn)

    @staticmethod
    def _shapes(algorithm: Algorithm) -> dict[str, tuple[int, int]]:
        k, p = algorithm.layout.n_token, algorithm.n_parameters
        return {"P12": (k, 1 + p), "V21": (p, k)}

    @classmethod
    def from_weights(cls, algorithm: Algorithm, P: Tensor, V: Tensor) -> LinearBlock:
        """Return the block with the weights P and V, each (D, D).

        A `LinearBlock` holds P12 and V21 alone: P22 or V22 has to be 0.
        """
        check_instance("algorithm", algorithm, Algorithm)
        P12, V21, P22, V22 = split(P, V, algorithm.n_parameters)
        if len(P) != algorithm.layout.size:
            size = algorithm.layout.size
            raise ValueError(f"P: expected D = {size} of {algorithm.name}, got {len(P)}")
        block = cls(algorithm, 0.0, generator=torch.Generator(P.device), dtype=P.dtype)
        known = {"P": P, "V": V, "P12": P12, "V21": V21}
        if "P" not in dict(block.named_parameters()) and P22.any() and V22.any():
            raise ValueError("P: expected P22 = 0 or V22 = 0; LiteralBlock keeps all of P and V")
        block.load_state_dict({name: known[name] for name in block.state_dict()})
        return block

    def forward(self, tokens: Tensor, parameters: Tensor) -> Tensor:
        return reduced_update(tokens, parameters, self.P12, self.V21)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return P and V, each (D, D), exactly 0 where the block has no weights."""
        return join(self.P12.detach(), self.V21.detach())


class LiteralBlock(LinearBlock):
    """The linear block to the letter of eq. (1): H is built, and all of P and V (D, D) can move.

    Parameters are those of `LinearBlock`.
    """

    P: nn.Parameter
    V: nn.Parameter

    @staticmethod
    def _shapes(algorithm: Algorithm) -> dict[str, tuple[int, int]]:
        size = algorithm.layout.size
        return {"P": (size, size), "V": (size, size)}

    def forward(self, tokens: Tensor, parameters: Tensor) -> Tensor:
        H = linear_self_attention(assemble(tokens, parameters), self.P, self.V)
        return H[:, -parameters.shape[1] :, -1]

    def weights(self) -> tuple[Tensor, Tensor]:
        return self.P.detach().clone(), self.V.detach().clone()


class SoftmaxBlock(nn.Module):
    """A block of softmax attention, any number of `heads` (`icrl_lib.attention.softmax_update`).

    With an `anchor` it attends to the parameter column, too; P22 and V22 are then trained, from 0;
    else they are None. Scores are divided by `temperature`. The other arguments are those of
    `LinearBlock`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        heads: int = 1,
        gain: float = 0.1,
        *,
        anchor: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_instance("algorithm", algorithm, Algorithm)
        check_count("heads", heads)
        self.temperature = check_number("temperature", temperature, above=0)
        k, p = algorithm.layout.n_token, algorithm.n_parameters
        self.P12 = _xavier(heads, k, 1 + p, gain=gain, generator=generator, dtype=dtype)
        self.V21 = _xavier(heads, p, k, gain=gain, generator=generator, dtype=dtype)
        self.P22 = self.V22 = None
        if anchor:
            self.P22 = nn.Parameter(self.P12.new_zeros(heads, 1 + p, 1 + p))
            self.V22 = nn.Parameter(self.P12.new_zeros(heads, p, 1 + p))

    def forward(self, tokens: Tensor, parameters: Tensor) -> Tensor:
        blocks = (self.P12, self.V21, self.P22, self.V22)
        return softmax_update(tokens, parameters, *blocks, temperature=self.temperature)


class Repeated(nn.Module):
    """A student applied `passes` times to one window: layers that share their weights."""

    def __init__(self, student: nn.Module, passes: int) -> None:
        super().__init__()
        check_instance("student", student, nn.Module)
        self.student, self.passes = student, check_count("passes", passes)

    def forward(self, tokens: Tensor, parameters: Tensor) -> Tensor:
        for _ in range(self.passes):
            parameters = self.student(tokens, parameters)
        return parameters
