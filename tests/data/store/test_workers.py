import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ppa_fast.data.store.workers import Workers
from ppa_fast.errors import UserError


def square(number: int) -> int:
    return number * number


def process_id(_: int) -> int:
    return os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ArithmeticError("three")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), 9)
    return number


@pytest.mark.parametrize("processes", [1, 3])
def test_results_are_in_order(processes: int) -> None:
    with Workers(square, processes) as workers:
        assert list(workers.map(range(50))) == [number * number for number in range(50)]


def test_the_requested_processes_run_and_none_for_one_item() -> None:
    with Workers(process_id, 2) as workers:
        assert list(workers.map([1])) == [os.getpid()]
        assert list(workers.map([])) == []
        found = set(workers.map(range(40)))
    assert len(found - {os.getpid()}) == len(found) <= 2


def test_few_items_are_read_ahead() -> None:
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in range(100):
            read += 1
            yield number

    with Workers(square, 2) as workers:
        ahead = [read - taken for taken, _ in enumerate(workers.map(numbers()))]
    assert len(ahead) == 100
    assert max(ahead) <= 5  # the current item, and two for each process


def test_an_error_of_the_function_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="ended with status 1"), Workers(fail_at_three, 2) as workers:
        list(workers.map(range(9)))
    assert "ArithmeticError: three" in capfd.readouterr().err


def test_a_killed_process_is_an_error() -> None:
    message = "killed by signal 9; if memory ran out, use fewer --workers"
    with pytest.raises(UserError, match=message), Workers(die_at_three, 2) as workers:
        list(workers.map(range(9)))


def test_workers_exit_with_their_parent() -> None:
    """Runs a script without a ``__main__`` guard. Its stdout closes when the last process that has it exits."""
    code = (
        "import os; from ppa_fast.data.store.workers import Workers\n"
        "from tests.data.store.test_workers import process_id\n"
        "with Workers(process_id, 2) as workers:\n"
        "    print(next(workers.map(range(100))), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -9
    assert not os.path.exists(f"/proc/{int(done.stdout)}/fd/0")  # exited, or a zombie
