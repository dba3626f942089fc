"""bgnn-convert's wheel leaves out the modules that bgnn-runtime, which it depends on, brings: no file is in both.

All else is in pyproject.toml. An editable install has everything from src/.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RUNTIME_FILES = (Path(__file__).parent / "runtime_bench" / "packaging" / "files.txt").read_text().split()


class BuildWithoutRuntime(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [each for each in found if f"{package.replace('.', '/')}/{each[1]}.py" not in RUNTIME_FILES]


setup(cmdclass={"build_py": BuildWithoutRuntime})
