"""Makes a repository of the TensorFlow, pybind11, NumPy and Python that PYTHON_BIN_PATH has."""

_FIND = """
import importlib.util as util, os, sysconfig
where = lambda name: os.path.dirname(util.find_spec(name).origin)
print(where("tensorflow"))
print(where("pybind11"))
print(os.path.join(where("numpy"), "_core", "include"))
print(sysconfig.get_path("include"))
"""

_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob([
        "tensorflow_include/**",
        "numpy_include/**",
        "pybind11_include/**",
        "python_include/**",
    ]),
    includes = [
        "numpy_include",
        "pybind11_include",
        "python_include",
        "tensorflow_include",
        "tensorflow_include/external/farmhash_archive/src",
    ],
)

cc_library(
    name = "libraries",
    srcs = [
        "lib_pywrap_tensorflow_common.so",
        "libtensorflow_cc.so.2",
        "libtensorflow_framework.so.2",
    ],
)
"""

def _tf_configure_impl(ctx):
    python = ctx.os.environ.get("PYTHON_BIN_PATH", "python3")
    found = ctx.execute([python, "-c", _FIND])
    if found.return_code != 0:
        fail("%s lacks TensorFlow, pybind11 or NumPy; set PYTHON_BIN_PATH. %s" % (python, found.stderr))
    tensorflow, pybind11, numpy, python_include = found.stdout.strip().split("\n")
    ctx.symlink(tensorflow + "/include", "tensorflow_include")
    ctx.symlink(pybind11 + "/include", "pybind11_include")
    ctx.symlink(numpy, "numpy_include")
    ctx.symlink(python_include, "python_include")
    ctx.symlink(tensorflow + "/libtensorflow_framework.so.2", "libtensorflow_framework.so.2")
    ctx.symlink(tensorflow + "/libtensorflow_cc.so.2", "libtensorflow_cc.so.2")
    ctx.symlink(
        tensorflow + "/python/lib_pywrap_tensorflow_common.so",
        "lib_pywrap_tensorflow_common.so",
    )
    ctx.file("BUILD", _BUILD)

tf_configure = repository_rule(
    implementation = _tf_configure_impl,
    environ = ["PYTHON_BIN_PATH"],
    local = True,
)
