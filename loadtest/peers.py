"""What a user would pick instead, each started from a temporary folder and tuned as its own manual says.

Redis holds the same JSON under the same ids and is reached by its Unix socket, which costs less than TCP. Neither
nginx nor FastAPI limits, counts or makes ETags.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness import FOLDER, HOST, BenchError, Running, Server, Stage, find_program, free_port

NGINX = ("nginx", "redis-server", "redis-cli")
FASTAPI = ("redis-server", "redis-cli")
FASTAPI_MODULES = ("fastapi", "uvicorn", "uvloop", "httptools", "redis")
NGINX_CONF = """
{user}
daemon off;
worker_processes {workers};
pid nginx.pid;
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/json;
    # One connection a client for the whole run, as with the other servers.
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    lua_package_path "{scripts}/?.lua;;";
    lua_shared_dict keys 1m;
    init_by_lua_block {{
        lookup = require "peer_nginx"
        ngx.shared.keys:set("{authorization}", true)
    }}
    server {{
        listen {host}:{port} backlog=4096;
        location /v1/profiles/id/ {{ content_by_lua_block {{ lookup.answer("unix:{redis}") }} }}
    }}
}}
"""


class Redis(NamedTuple):
    """A Redis that keeps nothing on disk, the port on which it listens, and its Unix socket."""

    running: Running
    port: int
    path: Path

    def cli(self, *arguments: str, sent: bytes = b"") -> str:
        """What redis-cli prints."""
        command = [str(find_program("redis-cli")), "-s", str(self.path), *arguments]
        return subprocess.run(command, input=sent, capture_output=True, check=False).stdout.decode()

    def fill(self, values: Mapping[str, bytes]) -> None:
        """Sets all of these. Raises BenchError where one is refused."""
        sets = [
            b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)
            for key, value in ((key.encode(), value) for key, value in values.items())
        ]
        printed = self.cli("--pipe", sent=b"".join(sets))
        if f"errors: 0, replies: {len(values)}" not in printed:
            raise BenchError(f"redis-cli: {printed.strip()}")


def start_redis(stage: Stage) -> Redis:
    """Redis as a cache: nothing is written to disk."""
    port, path = free_port(), stage.folder / "redis.sock"
    options = {"port": str(port), "bind": HOST, "unixsocket": str(path), "dir": str(stage.folder)}
    options |= {"save": "", "appendonly": "no", "daemonize": "no"}
    command = [str(find_program("redis-server"))]
    for name, value in options.items():
        command += [f"--{name}", value]
    redis = Redis(stage.start(command), port, path)
    redis.running.wait_until(lambda: redis.cli("ping") == "PONG\n")
    return redis


def nginx_modules() -> Path | None:
    """The folder of nginx's modules, None where the one for Lua is not in it."""
    printed = subprocess.run([str(find_program("nginx")), "-V"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"--modules-path=(\S+)", printed)
    folder = Path(found[1] if found else "/usr/lib/nginx/modules")
    return folder if (folder / "ngx_http_lua_module.so").exists() else None


def start_nginx(stage: Stage, redis: Redis, header: str, path: str, *, workers: int = 1) -> Server:
    """nginx, whose Lua reads Redis. Its CPU is that of both. `path` is one that it should answer."""
    folder, port = stage.folder / "nginx", free_port()
    folder.mkdir()
    config = NGINX_CONF.format(
        # As root it would change to a user who may not enter the folder.
        user="user root;" if os.geteuid() == 0 else "",
        workers=workers,
        modules=nginx_modules(),
        scripts=FOLDER,
        authorization=header.partition(": ")[2],
        host=HOST,
        port=port,
        redis=redis.path,
    )
    (folder / "nginx.conf").write_text(config)
    command = [str(find_program("nginx")), "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    running = stage.start(command)
    server = Server((running, redis.running), port)
    running.wait_until(lambda: server.ask(path, header)[0] == 200)
    return server


def start_fastapi(stage: Stage, redis: Redis, header: str, path: str, *, workers: int = 1) -> Server:
    """FastAPI on uvicorn with uvloop and httptools. Its CPU is Redis's too. `path` is one that it should answer."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "uvicorn", "peer_fastapi:app", "--no-access-log", "--log-level", "warning"]
    command += ["--app-dir", str(FOLDER), "--host", HOST, "--port", str(port), "--workers", str(workers)]
    command += ["--loop", "uvloop", "--http", "httptools"]
    key_hash = hashlib.sha256(header.partition(": ")[2].encode()).hexdigest()
    running = stage.start(command, {"PEER_KEY_HASH": key_hash, "PEER_REDIS": f"unix://{redis.path}"})
    server = Server((running, redis.running), port)
    running.wait_until(lambda: server.ask(path, header)[0] == 200)
    return server
