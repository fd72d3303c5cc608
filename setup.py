"""Builds terra_tf: pure Python plus one shared library, `terra_tf/_terra_native.so`.

That library is a TensorFlow op library and a Python extension module at once, so it
is compiled against one TensorFlow minor and one Python, and has a fixed name without
an ABI tag: `terra_tf/_native.py` checks both versions before it loads it.

Environment variables:
  TERRA_TF_PACKAGE   the distribution that brings TensorFlow (`tensorflow`, the default,
                     or `tensorflow-cpu`, ...): what the wheel requires at run time and
                     what an isolated build installs
  TERRA_SANITIZE     `thread` or `address`: build with that sanitizer
  TERRA_STRICT       1: a warning of the compiler is an error, as in this project's own builds;
                     elsewhere a compiler that knows more warnings must not stop an installation
  TERRA_BUILD_JOBS   how many compilers run at a time (2)
  CXX                the compiler (g++)

TensorFlow is located without importing it, which would cost five seconds.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent
TENSORFLOW_PIN = ">=2.21,<2.22"
TENSORFLOW_MINOR = "2.21"

# What tf.sysconfig.get_compile_flags() says of TensorFlow 2.21; a test compares them.
TENSORFLOW_DEFINES = ("-D_GLIBCXX_USE_CXX11_ABI=1", "-DEIGEN_MAX_ALIGN_BYTES=64")
# NDEBUG because TensorFlow was built with it and some class layouts depend on it.
COMPILE_FLAGS = (
    *("-std=c++17", "-fPIC", "-pthread", "-DNDEBUG", *TENSORFLOW_DEFINES),
    *("-Wall", "-Wextra", "-fvisibility=hidden"),
)
RELEASE_FLAGS = ("-O2", "-g0")
SANITIZER_FLAGS = {
    "thread": ("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=thread"),
    # The macro would give classes of Abseil and protobuf another layout than TensorFlow's library
    # has; the warning is often wrong about instrumented code, as GCC's manual says.
    "address": (
        *("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address"),
        *("-U__SANITIZE_ADDRESS__", "-Wno-maybe-uninitialized"),
    ),
}
PRECOMPILED = ROOT / "kernels" / "precompiled.h"
TENSORFLOW_LIBRARIES = (
    "-l:libtensorflow_framework.so.2",
    "-l:libtensorflow_cc.so.2",
    "-l:lib_pywrap_tensorflow_common.so",
)


def stop(what, why, suggestion):
    """Ends the build with a message in the form of `terra_tf.errors.format_message`."""
    raise SystemExit(f"{what} [TERRA-BUILD]\n  Why: {why}\n  Try: 1) {suggestion}")


def tensorflow_requirement():
    return os.environ.get("TERRA_TF_PACKAGE", "tensorflow") + TENSORFLOW_PIN


@dataclasses.dataclass(frozen=True)
class TensorFlow:
    """An installed TensorFlow: its package directory and its version."""

    home: pathlib.Path
    version: str

    @classmethod
    def find(cls):
        spec = importlib.util.find_spec("tensorflow")
        if spec is None or not spec.submodule_search_locations:
            stop(
                f"no TensorFlow is installed for {sys.executable}",
                "the native library is compiled against TensorFlow's headers and libraries.",
                f'pip install "{tensorflow_requirement()}" pybind11, then build again.',
            )
        home = pathlib.Path(next(iter(spec.submodule_search_locations)))
        version = installed_tensorflow_version(home.parent)
        if not version.startswith(TENSORFLOW_MINOR + "."):
            stop(
                f"TensorFlow {version} is installed in {home}, and terra_tf needs {TENSORFLOW_PIN}",
                "it binds to C++ interfaces that differ from one TensorFlow minor to the next.",
                f'pip install "{tensorflow_requirement()}", then build again.',
            )
        return cls(home, version)


def installed_tensorflow_version(site_packages):
    """Returns the version of the distribution that put `tensorflow` into `site_packages`."""
    for distribution in importlib.metadata.distributions(path=[str(site_packages)]):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if re.fullmatch(r"tensorflow(-cpu|-gpu|-rocm|-intel|-aarch64)?", name):
            return distribution.version
    return "of unknown version"


def find_pybind11_headers():
    spec = importlib.util.find_spec("pybind11")
    if spec is None or not spec.submodule_search_locations:
        stop(
            f"pybind11 is not installed for {sys.executable}",
            "kernels/bindings/bindings.cc is written with it, and this build is not isolated.",
            "pip install pybind11, or build without --no-build-isolation.",
        )
    return pathlib.Path(next(iter(spec.submodule_search_locations))) / "include"


def find_numpy_headers():
    """Returns NumPy's include directories, which TensorFlow's Python headers need."""
    spec = importlib.util.find_spec("numpy")
    home = pathlib.Path(next(iter(spec.submodule_search_locations)))
    return [path for name in ("_core", "core") if (path := home / name / "include").is_dir()]


def find_compiler():
    """Returns the compiler's command and its own one-line description."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    if not command or shutil.which(command[0]) is None:
        stop(
            f"the C++ compiler {' '.join(command) or '(empty CXX)'!r} was not found",
            "terra_tf has a native part that is compiled where it is installed.",
            "install g++ 9 or later (Debian: apt-get install g++), or set CXX to your compiler.",
        )
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    return command, answer.stdout.splitlines()[0]


def optimization_flags():
    name = os.environ.get("TERRA_SANITIZE", "")
    if not name:
        return RELEASE_FLAGS
    if name not in SANITIZER_FLAGS:
        stop(
            f"TERRA_SANITIZE is {name!r}",
            f"the known sanitizers are {' and '.join(SANITIZER_FLAGS)}.",
            "set it to one of them, or unset it.",
        )
    return SANITIZER_FLAGS[name]


def strictness_flags():
    return ("-Werror",) if os.environ.get("TERRA_STRICT", "") == "1" else ()


def find_sources():
    kernels = sorted(ROOT.glob("kernels/**/*.cc"))
    sources = [path for path in kernels if not path.name.endswith("_test.cc")]
    if not sources:
        stop(
            f"there is no C++ source under {ROOT / 'kernels'}",
            "the source tree is incomplete.",
            "check the tree out anew, or build from the source distribution.",
        )
    return sources


def read_dependencies(depfile):
    """Returns the files that a compiler-written depfile names as prerequisites."""
    text = depfile.read_text().replace("\\\n", " ").partition(": ")[2]
    names = [name.replace("\\ ", " ") for name in re.split(r"(?<!\\)\s+", text)]
    return [pathlib.Path(name) for name in names if name]


class NativeBuild:
    """Compiles and links the native library, redoing only what changed.

    An output is redone when one of its inputs is newer, or when the command that made
    it (kept beside it in a `.command` file) differs from today's.
    """

    def __init__(self, runtime_tensorflow=None):
        """Args: runtime_tensorflow: absolute home of TensorFlow to search last when loading."""
        self.tensorflow = TensorFlow.find()
        self.compiler, self.compiler_version = find_compiler()
        self.flags = (*optimization_flags(), *strictness_flags())
        self.include_dirs = [
            self.tensorflow.home / "include",
            self.tensorflow.home / "include/external/farmhash_archive/src",
            find_pybind11_headers(),
            *find_numpy_headers(),
            pathlib.Path(sysconfig.get_path("include")),
        ]
        self.runtime_tensorflow = runtime_tensorflow
        sanitizer = os.environ.get("TERRA_SANITIZE", "")
        variant = "-".join(filter(None, [sys.implementation.cache_tag, sanitizer]))
        self.directory = ROOT / "build" / "native" / variant

    def build(self):
        """Returns the path of the up-to-date library."""
        sources, header = find_sources(), self.precompile()
        jobs = max(1, int(os.environ.get("TERRA_BUILD_JOBS", "2")))
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(lambda source: self.compile(source, header), sources))
        return self.link(objects)

    def precompile(self):
        """Returns the header that every source begins with.

        To parse TensorFlow's headers is nine tenths of a compilation. The compiler takes the `.gch`
        beside a header, if it was made with the same flags, and the header itself if not: slower,
        and the same.
        """
        header = self.directory / PRECOMPILED.name
        output = header.with_name(header.name + ".gch")
        header.parent.mkdir(parents=True, exist_ok=True)
        if not is_up_to_date(header, [PRECOMPILED]):
            header.write_text(PRECOMPILED.read_text())
        self.run_if_stale(
            [*self.compile_command(), "-x", "c++-header", str(header), "-o", str(output)],
            output,
            [header],
            f"compiling {PRECOMPILED.relative_to(ROOT)}",
        )
        return header

    def compile_command(self):
        command = [*self.compiler, *COMPILE_FLAGS, *self.flags, f"-I{ROOT}"]
        for directory in self.include_dirs:
            command += ["-isystem", str(directory)]
        return command

    def compile(self, source, header):
        relative = source.relative_to(ROOT)
        output = (self.directory / relative).with_suffix(".o")
        depfile = output.with_suffix(".d")
        command = [*self.compile_command(), "-include", str(header)]
        command += ["-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
        inputs = None
        if depfile.exists():
            inputs = [*read_dependencies(depfile), header.with_name(header.name + ".gch")]
        self.run_if_stale(command, output, inputs, f"compiling {relative}")
        return output

    def link(self, objects):
        output = self.directory / "_terra_native.so"
        run_path = ["$ORIGIN/../tensorflow", "$ORIGIN/../tensorflow/python"]
        if self.runtime_tensorflow is not None:
            run_path += [str(self.runtime_tensorflow), str(self.runtime_tensorflow / "python")]
        home = self.tensorflow.home
        command = [*self.compiler, "-shared", "-pthread", *self.flags, *map(str, objects)]
        command += ["-o", str(output), f"-L{home}", f"-L{home / 'python'}", *TENSORFLOW_LIBRARIES]
        command += ["-Wl,--enable-new-dtags", "-Wl,-rpath," + ":".join(run_path)]
        self.run_if_stale(command, output, objects, f"linking {output.name}")
        return output

    def run_if_stale(self, command, output, inputs, title):
        recipe = output.with_name(output.name + ".command")
        # Depfiles leave out system headers: a TensorFlow upgraded in place shows here only.
        wanted = "\n".join([self.tensorflow.version, self.compiler_version, *command])
        is_same_recipe = recipe.exists() and recipe.read_text() == wanted
        if is_same_recipe and inputs is not None and is_up_to_date(output, inputs):
            return
        print(title, flush=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        recipe.unlink(missing_ok=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            print(done.stdout, flush=True)
            stop(
                f"{title} failed with exit status {done.returncode}",
                f"the compiler's first error above says it; the command was {shlex.join(command)}",
                "report it with the whole output, unless you changed the source.",
            )
        recipe.write_text(wanted)


def is_up_to_date(output, inputs):
    try:
        made_at = output.stat().st_mtime_ns
        return all(path.stat().st_mtime_ns <= made_at for path in inputs)
    except FileNotFoundError:
        return False


def write_build_info(path, tensorflow_version, compiler_version):
    python_version = "{}.{}".format(*sys.version_info)
    path.write_text(
        '"""What `_terra_native.so` was compiled against; generated by setup.py."""\n\n'
        f"TENSORFLOW_VERSION = {tensorflow_version!r}\n"
        f"PYTHON_VERSION = {python_version!r}\n"
        f"COMPILER = {compiler_version!r}\n"
    )


def lasting_tensorflow(home):
    """Returns the TensorFlow directory that still exists after the build.

    An isolated build compiles against a TensorFlow in a temporary directory; the one
    that will be loaded lives among the interpreter's own packages.
    """
    if pathlib.Path(tempfile.gettempdir()).resolve() in home.resolve().parents:
        return pathlib.Path(sysconfig.get_path("platlib")) / "tensorflow"
    return home


class BuildNativeLibrary(build_ext):
    """setuptools' `build_ext`, with the one library built by `NativeBuild`."""

    def run(self):
        # setuptools clears `inplace` while it builds, and copies afterwards.
        self.stays_in_source_tree = bool(self.inplace or self.editable_mode)
        super().run()

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext):
        home = lasting_tensorflow(TensorFlow.find().home) if self.stays_in_source_tree else None
        native = NativeBuild(runtime_tensorflow=home)
        built = native.build()
        destination = pathlib.Path(self.get_ext_fullpath(ext.name))
        destination.parent.mkdir(parents=True, exist_ok=True)
        replace_file(built, destination)
        build_info = destination.with_name("_build_info.py")
        write_build_info(build_info, native.tensorflow.version, native.compiler_version)
        self.products = [destination, build_info]

    def copy_extensions_to_source(self):
        for product in self.products:
            replace_file(product, ROOT / "terra_tf" / product.name)


def replace_file(source, destination):
    """Puts a copy in place by renaming: a process that has the old library mapped lives on."""
    unfinished = destination.with_name(destination.name + ".new")
    shutil.copyfile(source, unfinished)
    os.replace(unfinished, destination)


if __name__ == "__main__":
    os.chdir(ROOT)
    setup(
        packages=find_packages(include=["terra_tf", "terra_tf.*", "benchmarks", "benchmarks.*"]),
        package_data={"terra_tf": ["*.pyi", "py.typed"]},
        license="Apache-2.0",
        install_requires=[tensorflow_requirement(), "numpy", "absl-py", "graphviz"],
        # Only where pip or `build` asks what an isolated build needs: setuptools answers
        # that by running `egg_info`. Elsewhere it would install on its own account.
        setup_requires=[tensorflow_requirement()] if "egg_info" in sys.argv else [],
        ext_modules=[Extension("terra_tf._terra_native", sources=[])],
        cmdclass={"build_ext": BuildNativeLibrary},
    )
