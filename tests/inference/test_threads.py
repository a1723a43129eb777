import threading

import numpy as np
import pytest

from app.inference.threads import SMALLEST, RowWorkers


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("per_row", [1, 100, SMALLEST])
def test_every_row_is_done_once(count, rows, per_row):
    done = np.zeros(5 + rows + 5, int)
    lock = threading.Lock()

    def work(start: int, stop: int) -> None:
        with lock:
            done[start:stop] += 1

    RowWorkers(count).map_rows(work, range(5, 5 + rows), per_row)
    assert done.tolist() == [0] * 5 + [1] * rows + [0] * 5


def test_small_work_stays_with_its_caller():
    seen = set()
    threads = RowWorkers(4)
    threads.map_rows(
        lambda _start, _stop: seen.add(threading.get_ident()), range(10), SMALLEST // 10
    )
    assert seen == {threading.get_ident()}


def test_helpers_that_are_busy_with_another_caller_are_not_waited_for():
    threads = RowWorkers(2)
    entered, release = threading.Barrier(3), threading.Event()

    def stuck(_start: int, _stop: int) -> None:
        entered.wait(10)
        release.wait(10)

    other = threading.Thread(target=threads.map_rows, args=(stuck, range(2), SMALLEST))
    other.start()
    entered.wait(10)  # both the other caller and the only helper are inside
    rows = []
    threads.map_rows(lambda start, _stop: rows.append(start), range(8), SMALLEST)
    release.set()
    other.join(10)
    assert sorted(rows) == list(range(8))


@pytest.mark.parametrize("failing", [0, 5])
def test_an_error_reaches_the_caller(failing):
    def work(start: int, _stop: int) -> None:
        if start == failing:
            raise ValueError("row")

    with pytest.raises(ValueError, match="row"):
        RowWorkers(3).map_rows(work, range(12), SMALLEST)
