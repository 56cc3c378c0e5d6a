"""The sampling of one step of a batch, between the engine's sequences and the manager's rows."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .row_sampling import (
    RowNumbers,
    StepKind,
    kind_of,
    pack_rows,
    sample_captured,
    unpack_rows,
)
from .sampling import SamplingState, sample_step
from .sampling_params import SamplingParams
from .transformers_private import Row

CANCELLED = SamplingState(SamplingParams(max_tokens=0, temperature=0.0), [], [], [])
"""State of a request that was cancelled while its step was prepared: its token is dropped"""


class BatchStep:
    """The step that comes next: see `transformers_private.Step`."""

    def __init__(
        self,
        state_of: Callable[[str], SamplingState | None],
        observe: Callable[[int], None],
        *,
        captured: bool,
    ) -> None:
        """state_of: the sequence of a request; None if it was cancelled.
        observe: is told the number of rows.
        captured: steps that need nothing on the host run in CUDA graphs.
        """
        self.kind: StepKind | None = StepKind()
        self._state_of = state_of
        self._observe = observe
        self._captured = captured
        self._states: list[SamplingState] = []
        self._rows: list[RowNumbers] = []

    def begin(self, rows: Sequence[Row]) -> Tensor:
        self._states = []
        for request_id, tokens, ahead in rows:
            state = self._state_of(request_id)
            if state is not None:
                state.advance(tokens, ahead)
            self._states.append(state or CANCELLED)
        self._rows = [state.row for state in self._states]
        needs_host = any(state.needs_host for state in self._states)
        self.kind = None if needs_host else kind_of(self._rows)
        self._observe(len(rows))
        return pack_rows(self._rows)

    def sample(self, logits: Tensor, numbers: Tensor) -> None:
        if self._captured and self.kind is not None:
            sample_captured(logits, unpack_rows(numbers), self.kind)
            return
        count = len(self._states)
        params = unpack_rows(numbers[:, :count])
        sample_step(logits[:count], self._states, self._rows, params)
