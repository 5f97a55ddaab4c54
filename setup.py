"""The compiled modules; everything else about the package is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# EDGEPROFILE_SANITIZE=1 builds with AddressSanitizer and UBSan, for `make fuzz`.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
FLAGS = SANITIZE if os.environ.get("EDGEPROFILE_SANITIZE") == "1" else ["-O3"]
# Divisions are by constants or by numbers that were checked; C's rule spares the hot loops a branch each.
DIRECTIVES = {"language_level": 3, "cdivision": True, "embedsignature": True, "autotestdict": False}
AT_ONCE = len(os.sched_getaffinity(0))
LOADING = ("columns", "record", "identifiers", "history", "merge", "relay")
SERVING = (
    "limiter",
    "log_lines",
    "metrics",
    "msgpack",
    "tree",
    "live",
    "store",
    "events",
    "exchange",
    "body",
    "gate",
    "lookup",
    "profile",
    "walk",
    "surface",
    "front",
)


def compiled(name: str) -> Extension:
    return Extension(
        f"edgeprofile._{name}",
        [f"ext/{name}.pyx"],
        include_dirs=["ext"],
        extra_compile_args=FLAGS,
        extra_link_args=FLAGS,
    )


# Processes that cythonize() starts may import this file.
if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            [compiled(name) for name in LOADING + SERVING],
            include_path=["src", "ext"],
            build_dir="build",
            compiler_directives=DIRECTIVES,
            nthreads=AT_ONCE,
        ),
        options={"build_ext": {"parallel": AT_ONCE}},
    )
