import threading

import numpy as np
import pytest

from app.inference.threads import MIN_STRIP_VALUES, RowWorkers


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("per_row", [1, 100, MIN_STRIP_VALUES])
def test_every_row_is_processed_once(count, rows, per_row):
    done = np.zeros(5 + rows + 5, int)
    lock = threading.Lock()

    def work(start: int, stop: int) -> None:
        with lock:
            done[start:stop] += 1

    RowWorkers(count).map_rows(work, range(5, 5 + rows), per_row)
    assert done.tolist() == [0] * 5 + [1] * rows + [0] * 5


def test_few_values_are_processed_by_the_caller_alone():
    idents = set()
    RowWorkers(4).map_rows(
        lambda _start, _stop: idents.add(threading.get_ident()), range(10), MIN_STRIP_VALUES // 10
    )
    assert idents == {threading.get_ident()}


def test_caller_does_not_wait_for_workers_of_another_caller():
    workers = RowWorkers(2)
    entered, release = threading.Barrier(3), threading.Event()

    def block(_start: int, _stop: int) -> None:
        entered.wait(10)
        release.wait(10)

    other = threading.Thread(target=workers.map_rows, args=(block, range(2), MIN_STRIP_VALUES))
    other.start()
    entered.wait(10)  # both the other caller and the only worker thread are blocked
    rows = []
    workers.map_rows(lambda start, _stop: rows.append(start), range(8), MIN_STRIP_VALUES)
    release.set()
    other.join(10)
    assert sorted(rows) == list(range(8))


@pytest.mark.parametrize("failing", [0, 5])
def test_error_of_the_work_is_raised_to_the_caller(failing):
    def work(start: int, _stop: int) -> None:
        if start == failing:
            raise ValueError("row")

    with pytest.raises(ValueError, match="row"):
        RowWorkers(3).map_rows(work, range(12), MIN_STRIP_VALUES)
