"""bgnn-convert's wheel leaves out what bgnn-runtime, which it depends on, brings: no file is in both.

All else is in pyproject.toml. An editable install has everything from src/.
"""

from setuptools import setup
from setuptools.command.build_py import build_py

RUNTIME = "bgnn.runtime_bench.runtime"


class BuildWithoutRuntime(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The room that ships to devices, and the modules of the packages around it, are bgnn-runtime's."""
        around = f"{RUNTIME}.".startswith(f"{package}.")
        return [] if around else super().find_package_modules(package, package_dir)


setup(cmdclass={"build_py": BuildWithoutRuntime})
