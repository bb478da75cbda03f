"""Builds specbranch._C by driving CMake (with Ninja); the rest is in pyproject.toml.

Environment, all optional:
  SPECBRANCH_CUDA                AUTO (default), ON or OFF
  SPECBRANCH_CUDA_ARCHITECTURES  a CMake list, default "80-real;90-real;120"
  CMAKE_ARGS                     further arguments for CMake, e.g. "-DSPECBRANCH_SANITIZE=ON"
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeExtension(Extension):
    """An extension whose sources are listed in CMakeLists.txt, not here."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Builds in build/cmake-<python tag>, so that a repeated build is incremental."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        output.mkdir(parents=True, exist_ok=True)
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake = _tool("cmake")
        subprocess.run(
            [cmake, "-S", str(ROOT), "-B", str(build_dir), *self._options(output)], check=True
        )
        jobs = [f"-j{self.parallel}"] if self.parallel else []
        subprocess.run([cmake, "--build", str(build_dir), *jobs], check=True)

    def _options(self, output: Path) -> list[str]:
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            # Named anew each time: an isolated build's ninja and pybind11 are gone afterwards.
            "CMAKE_MAKE_PROGRAM": _tool("ninja"),
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "Python_EXECUTABLE": sys.executable,
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(output),
            "SPECBRANCH_CUDA": os.environ.get("SPECBRANCH_CUDA", "AUTO"),
        }
        if architectures := os.environ.get("SPECBRANCH_CUDA_ARCHITECTURES"):
            options["CMAKE_CUDA_ARCHITECTURES"] = architectures
        defines = [f"-D{key}={value}" for key, value in options.items()]
        return ["-GNinja", *defines, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]


def _tool(name: str) -> str:
    """The build requirement's program: beside this interpreter, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} was not found; install it with: pip install {name}")
    return found


setup(ext_modules=[CMakeExtension("specbranch._C")], cmdclass={"build_ext": CMakeBuild})
