"""One batch, from its input to its files."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..files.file_errors import FileNotFound
from ..files.store import FileStore, StoredFile, new_id
from ..http.token_usage import TokenUsage
from .batch_errors import ClaimLost, InvalidLine
from .batch_metrics import BatchMetrics
from .batch_store import BatchProblem, BatchState, BatchStore, Ending, LineResult
from .inner_app import InnerAnswer
from .input_lines import MAX_LINES, MAX_PROBLEMS, InputCheck, InputLine, parse_line, split_lines
from .line_work import LineWork
from .output_lines import unanswered_line

logger = logging.getLogger(__name__)

SAVE_SECONDS = 5.0
SAVE_SIZE = 1024 * 1024
"""Results are kept after so long, or so many bytes: what a crash costs"""

EXPIRED = "This request could not be executed before the completion window expired."


@dataclass(frozen=True)
class RunContext:
    """The parts of a service that all batches of a process share."""

    store: BatchStore
    files: FileStore
    post: Callable[[str, bytes, str | None], Awaitable[InnerAnswer]]
    """Answers the body of a request to a path, for the key of this name"""
    is_model: Callable[[str], bool]
    is_leaving: Callable[[], bool]
    """True once the service shuts down"""
    charge: Callable[[str, TokenUsage], None]
    """Is told the name of the key whose batch has used tokens"""
    metrics: BatchMetrics
    slots: asyncio.Semaphore
    """One for each line that may be in flight"""
    max_line: int
    """Bytes of a line"""


class BatchRun:
    """Runs a batch. Whatever cuts it short, another run goes on where the results end."""

    def __init__(self, batch_id: str, context: RunContext) -> None:
        self.poke = asyncio.Event()
        """To look at the batch's state now"""
        self._id = batch_id
        self._context = context
        self._store, self._files = context.store, context.files
        self._done: set[int] = set()
        """Numbers of the lines whose results are kept"""
        self._completed = self._failed = self._parts = 0
        self._results: list[LineResult] = []
        """Those that are not kept yet"""
        self._size = 0
        """Their bytes"""
        self._room = asyncio.Event()
        """Set while there is room for more of them"""
        self._room.set()
        self._saving = asyncio.Lock()

    async def run(self) -> None:
        """Ends when the batch has ended, or when the service shuts down.

        Raises ClaimLost, BatchNotFound, and obstore's errors when the store does not work.
        """
        batch: BatchState | None = await self._store.retrieve(self._id)
        assert batch is not None
        if batch.ended:
            await self._store.clean(self._id)
            return
        if batch.ending is None:
            if batch.model is None and batch.cancelling_at is None:
                batch = await self._validate(batch)
                if batch is None:
                    return
            await self._load_parts()
            if not await self._answer_all(batch):
                return
            batch = await self._store.retrieve(self._id)
        else:
            await self._load_parts()
        await self._finish(batch)

    async def _validate(self, batch: BatchState) -> BatchState | None:
        """The batch with its model and the number of its lines; None if it has failed."""
        check = InputCheck(self._context.is_model)
        try:
            problems = await self._problems(batch, check)
        except FileNotFound as error:
            problems = [BatchProblem(code="file_not_found", message=str(error))]
        if problems:
            changes = {"status": "failed", "failed_at": now(), "errors": problems}
            await self._end(batch.model_copy(update=changes))
            return None
        started = {
            "status": "in_progress",
            "in_progress_at": now(),
            "model": check.model,
            "total": check.lines,
        }
        await self._store.write(self._id, "started", started)
        return batch.model_copy(update=started)

    async def _problems(self, batch: BatchState, check: InputCheck) -> list[BatchProblem]:
        """Reasons why the input is refused. Raises FileNotFound."""
        file = await self._files.retrieve(batch.input_file_id)
        problems: list[BatchProblem] = []
        async for number, raw in self._raw_lines(file):
            try:
                check.add(parse_line(number, raw, batch.endpoint, self._context.max_line))
            except InvalidLine as error:
                problems.append(
                    BatchProblem(
                        code=error.code, message=str(error), line=number, param=error.param
                    )
                )
            if check.lines > MAX_LINES:
                message = f"The input has more than {MAX_LINES} lines."
                return [BatchProblem(code="too_many_tasks", message=message)]
            if len(problems) == MAX_PROBLEMS:
                break
            await asyncio.sleep(0)  # a request may be waiting
        if not check.lines and not problems:
            return [BatchProblem(code="empty_file", message="The input has no lines.")]
        return problems

    def _raw_lines(self, file: StoredFile) -> AsyncIterator[tuple[int, bytes]]:
        async def read(start: int, length: int) -> bytes:
            return await self._files.part(file, start, length)

        return split_lines(read, self._context.max_line)

    async def _load_parts(self) -> None:
        async for part in self._store.parts(self._id):
            self._count(part)

    def _count(self, part: Sequence[LineResult]) -> None:
        self._parts += 1
        self._done |= {result.number for result in part}
        succeeded = sum(result.succeeded for result in part)
        self._completed += succeeded
        self._failed += len(part) - succeeded

    async def _answer_all(self, batch: BatchState) -> bool:
        """Answers what has no result, and decides how the batch ends. False if it goes on later."""
        problems: list[BatchProblem] = []
        try:
            ending = await self._answer_lines(batch)
        except FileNotFound as error:
            ending = "failed"
            problems.append(BatchProblem(code="file_not_found", message=str(error)))
        if ending is None:
            return False
        decided = {
            "status": "finalizing",
            "finalizing_at": now(),
            "ending": ending,
            "output_id": new_id(),
            "error_id": new_id(),
            "errors": [problem.model_dump() for problem in problems],
        }
        # If another process was here first, it counts what that has decided.
        await self._store.write(self._id, "finalizing", decided)
        return True

    async def _answer_lines(self, batch: BatchState) -> Ending | None:
        """The status that the batch will have; None if it goes on later. Raises FileNotFound."""
        if ending := await self._early_ending(batch):
            return ending
        file = await self._files.retrieve(batch.input_file_id)
        taking = asyncio.create_task(self._take_lines(batch, file))
        taking.add_done_callback(lambda _: self.poke.set())
        try:
            while not taking.done():
                if ending := await self._early_ending(batch):
                    return ending
                with suppress(TimeoutError):
                    async with asyncio.timeout(SAVE_SECONDS):
                        await self.poke.wait()
                self.poke.clear()
                await self._save(batch)
            return "completed" if taking.result() else None
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            taking.cancel()
            await asyncio.wait([taking])
            await self._save(batch)

    async def _early_ending(self, batch: BatchState) -> Ending | None:
        if await self._store.has(self._id, "cancelling"):
            return "cancelled"
        return "expired" if time.time() >= batch.expires_at else None

    async def _take_lines(self, batch: BatchState, file: StoredFile) -> bool:
        """Answers the lines that have no result. False if it ended before the last of them."""

        def post(body: bytes) -> Awaitable[InnerAnswer]:
            return self._context.post(batch.endpoint, body, batch.owner)

        async with asyncio.TaskGroup() as group:
            async for number, raw in self._raw_lines(file):
                if number in self._done:
                    continue
                if self._context.is_leaving():
                    return False
                line = parse_line(number, raw, batch.endpoint, self._context.max_line)
                await self._context.slots.acquire()
                work = LineWork(line, post)
                task = group.create_task(self._answer(batch, work))
                task.add_done_callback(lambda _: self._context.slots.release())
                # One line at a time asks for room: the others would not find any either.
                await work.entered.wait()
        return True

    async def _answer(self, batch: BatchState, work: LineWork) -> None:
        result, answer = await work.run()
        for _ in range(work.interruptions):
            self._context.metrics.interrupted()
        self._context.metrics.answered(succeeded=result.succeeded)
        if batch.owner is not None:
            self._context.charge(batch.owner, answer.usage)
        self._results.append(result)
        self._size += len(result.document)
        if self._size >= SAVE_SIZE:
            self._room.clear()
            self.poke.set()
        await self._room.wait()

    async def _save(self, batch: BatchState) -> None:
        """Keeps the results so far. Cancelling this does not cut it short. Raises ClaimLost."""
        await asyncio.shield(asyncio.create_task(self._save_results(batch)))

    async def _save_results(self, batch: BatchState) -> None:
        async with self._saving:
            results, self._results = self._results, []
            if not results:
                return
            try:
                is_kept = await self._store.add_part(self._id, self._parts, results)
            except BaseException:
                self._results = [*results, *self._results]
                raise
            if not is_kept:
                raise ClaimLost
            self._size = sum(len(result.document) for result in self._results)
            self._room.set()
            self._count(results)
            counts = {"completed": self._completed, "failed": self._failed, "total": batch.total}
            started = {"status": "in_progress", "model": batch.model, **counts}
            await self._store.write(
                self._id, "started", {**started, "in_progress_at": batch.in_progress_at}
            )

    async def _finish(self, batch: BatchState) -> None:
        """Writes the files of the batch, and its last state."""
        assert batch.ending is not None
        unanswered = batch.total - len(self._done) if batch.ending == "expired" else 0
        failed = self._failed + unanswered
        changes = {
            "status": batch.ending,
            f"{batch.ending}_at": now(),
            "completed": self._completed,
            "failed": failed,
            "output_file_id": batch.output_id if self._completed else None,
            "error_file_id": batch.error_id if failed else None,
        }
        if self._completed:
            documents = self._documents(succeeded=True)
            await self._write_file(batch, batch.output_id, "output", documents)
        if failed:
            documents = self._error_documents(batch)
            await self._write_file(batch, batch.error_id, "error", documents)
        await self._end(batch.model_copy(update=changes))

    async def _write_file(
        self, batch: BatchState, file_id: str | None, kind: str, lines: AsyncIterator[bytes]
    ) -> None:
        assert file_id is not None
        with suppress(FileNotFound):  # a run that was cut short has written it
            await self._files.retrieve(file_id)
            return
        await self._files.save(
            lines,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            expires_after=batch.output_expires_after,
            file_id=file_id,
        )

    async def _documents(self, *, succeeded: bool) -> AsyncIterator[bytes]:
        async for part in self._store.parts(self._id):
            for result in part:
                if result.succeeded == succeeded:
                    yield result.document + b"\n"

    async def _error_documents(self, batch: BatchState) -> AsyncIterator[bytes]:
        async for document in self._documents(succeeded=False):
            yield document
        if batch.ending == "expired":
            with suppress(FileNotFound):
                async for line in self._unanswered(batch):
                    yield unanswered_line(line.custom_id, "batch_expired", EXPIRED) + b"\n"

    async def _unanswered(self, batch: BatchState) -> AsyncIterator[InputLine]:
        file = await self._files.retrieve(batch.input_file_id)
        async for number, raw in self._raw_lines(file):
            if number not in self._done:
                yield parse_line(number, raw, batch.endpoint, self._context.max_line)

    async def _end(self, batch: BatchState) -> None:
        if await self._store.end(batch):
            self._context.metrics.ended(batch.status)
            logger.info(
                "%s %s: %d of %d lines completed, %d failed",
                *(batch.id, batch.status, batch.completed, batch.total, batch.failed),
            )
        await self._store.clean(batch.id)


def now() -> int:
    return int(time.time())
