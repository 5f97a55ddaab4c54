"""The end of a server: its terminal closed, its main process killed, its folder unusable, nothing to serve."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from service import Service, until
from workshop import Workshop

MakeService = Callable[..., Service]


@pytest.fixture
def served(make_service: MakeService) -> Service:
    service = make_service(workers=2, with_admin=True)
    service.start(ready=503)
    return service


def everyone(service: Service) -> list[int]:
    """The pids of all children: two workers and the admin listener."""
    admin = until(service.admin, "there is an admin listener")
    assert admin is not None
    return [*service.workers(), admin]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, which a container may leave uncollected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def test_all_processes_end_when_the_main_process_was_killed(served: Service) -> None:
    children = everyone(served)
    assert len(children) == 3
    process = served.release()
    process.kill()
    process.wait()
    until(lambda: not any(map(is_running, children)), "no process is left")


def test_a_closed_terminal_ends_the_server(served: Service) -> None:
    children = everyone(served)
    process = served.release()
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    until(lambda: not any(map(is_running, children)), "no process is left")


def test_a_workspace_without_a_snapshot_is_said_once_for_each_worker(served: Service) -> None:
    until(lambda: served.log().count("nothing is published yet: run edgeprofile load") >= 2, "both workers say so")


def test_a_data_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id")
    (tmp_path / "var").write_text("a file")
    for command in ("serve", "load"):
        ended = shop.run(command, env={"EDGEPROFILE_SERVER__PORT": "18471", "EDGEPROFILE_SERVER__ADMIN_PORT": "0"})
        assert ended.status == 1
        assert len(ended.complaints) == 1
        assert f"{tmp_path / 'var'} cannot be used: " in ended.complaints[0]
        assert "data_dir" in ended.err
