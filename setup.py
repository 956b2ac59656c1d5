"""Builds the one native extension: plain C files, each instruction-set level with its own flags.

Where there is no C compiler, or the build fails, the package installs without it and runs on its numba backend.
"""

import os
import platform
import sys
import sysconfig
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("kernels/waferline_kernels/native")
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-pthread"]
FLAGS += ["-Wno-psabi", "-Wno-pass-failed"]  # gcc's of wide arguments; clang's of loops that it cannot unroll wholly
FLAGS += ["-g0"]  # Python's -g doubles what compiling takes, and makes 30 MB of 2
# Python's own flags have -fwrapv, which leaves loops slower ways to count: 2 to 6% of a decoded token. Cython's file
# keeps it.
NO_WRAP = ["-fno-wrapv"]
# -march levels and not single features, so that a CFLAGS=-march=native of the user's cannot leak into the base files.
AVX512 = ["-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"]
X86_LEVELS = {
    "kernels_avx2": ["-march=x86-64-v3"],
    "kernels_avxvnni": ["-march=x86-64-v3", "-mavxvnni"],
    "kernels_avx512": AVX512,
    "kernels_amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
}
if os.environ.get("WAFERLINE_EMULATE_AMX"):  # tile registers in C, to test that level where the processor has none
    X86_LEVELS["kernels_amx"] = [*AVX512, "-mavx512bf16", "-include", str(NATIVE / "emulated_tiles.h")]
    FLAGS += ["-DEMULATE_AMX"]
ARM_LEVELS = {"kernels_dotprod": ["-march=armv8.2-a+dotprod"]}
MACHINE = sysconfig.get_platform().rpartition("-")[2]  # what is compiled for
if MACHINE == "universal2":  # a Python for both of Apple's families; levels are one family's
    MACHINE = platform.machine()
    os.environ["ARCHFLAGS"] = f"-arch {MACHINE}"
if MACHINE in ("x86_64", "amd64"):
    BASE_FLAGS, LEVEL_FLAGS = ["-march=x86-64", "-mtune=generic"], X86_LEVELS
elif MACHINE in ("aarch64", "arm64"):
    BASE_FLAGS, LEVEL_FLAGS = ["-march=armv8-a"], ARM_LEVELS
else:
    BASE_FLAGS, LEVEL_FLAGS = [], {}


def sources():
    """All C files but those of levels that other processor families have."""
    others = {"_native", *X86_LEVELS, *ARM_LEVELS} - set(LEVEL_FLAGS)
    return [str(NATIVE / "_native.pyx"), *(str(f) for f in sorted(NATIVE.glob("*.c")) if f.stem not in others)]


class BuildNative(build_ext):
    def build_extensions(self):
        """Each file with the flags of its level, and as many at once as there are CPUs: a level takes half a minute.

        Always all of them: flags follow the environment, and files' times do not tell of that.
        """
        self.force = True
        compile_one, link = self.compiler._compile, self.compiler.link_shared_object
        compiled = []

        def start_compiling(obj, src, ext, cc_args, extra_postargs, pp_opts):
            level = LEVEL_FLAGS.get(Path(src).stem, BASE_FLAGS)
            overflow = [] if Path(src).stem == "_native" else NO_WRAP
            flags = [*extra_postargs, *overflow, *level]
            compiled.append(pool.submit(compile_one, obj, src, ext, cc_args, flags, pp_opts))

        def link_compiled(*args, **options):
            for file in compiled:
                file.result()
            link(*args, **options)

        self.compiler._compile, self.compiler.link_shared_object = start_compiling, link_compiled
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            super().build_extensions()

    def run(self):
        try:
            super().run()
        except Exception as error:
            if os.environ.get("WAFERLINE_REQUIRE_NATIVE"):
                raise
            message = f"waferline's native backend was NOT built; its slower numba backend will run instead: {error}"
            warnings.warn(message, stacklevel=1)
            print(f"\n*** {message}\n", file=sys.stderr)


setup(
    packages=find_packages("engine") + find_packages("kernels"),
    package_dir={"waferline": "engine/waferline", "waferline_kernels": "kernels/waferline_kernels"},
    include_package_data=False,  # no C sources
    package_data={
        "waferline": ["py.typed", "demo/model/*", "demo/*.md"],
        "waferline_kernels": ["py.typed", "native/_native.pyi"],
    },
    ext_modules=[
        Extension(
            "waferline_kernels.native._native",
            sources=sources(),
            depends=["setup.py", *map(str, sorted(NATIVE.glob("*.h"))), *map(str, sorted(NATIVE.glob("kernels_*.c")))],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
