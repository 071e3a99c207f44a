import threading
import time

from flexpool_jax.data.lock import hold_lock


def test_one_holder_at_a_time_though_each_removes_the_file(tmp_path):
    path = tmp_path / "lock"
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with hold_lock(path):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not path.exists()


def test_a_file_left_by_a_killed_process_is_no_lock(tmp_path):
    (tmp_path / "lock").write_text("")
    with hold_lock(tmp_path / "lock"):
        pass
