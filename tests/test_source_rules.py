"""The rules of the house that can be read off the source; nothing is imported or run."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "terra_tf"
MAX_LINES = 500

# The rooms, lowest first: a module imports from its own room and from lower ones.
ROOMS = (
    ("errors",),
    ("config",),
    ("_build_info", "_native", "_tf_internals"),
    ("trace",),
    ("graph", "viz"),
    ("runtime",),
    ("function", "pure"),
    ("profiling", "keras"),
    ("tensorboard",),
    ("inspection",),
    ("__init__",),
    ("__main__",),
    ("testing",),
)
LEVEL_OF_ROOM = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# The rooms of the native half, the same way: a file includes its own room and lower ones.
NATIVE_ROOMS = (
    ("core",),
    ("python", "runner"),
    ("call", "ops"),
    ("plan",),
    ("outputs",),
    ("cursor",),
    ("tapes",),
    ("session",),
    ("replay",),
    ("hooks",),
    ("bindings",),
)
LEVEL_OF_NATIVE_ROOM = {room: level for level, rooms in enumerate(NATIVE_ROOMS) for room in rooms}
# These know neither Python nor the package's use of it.
WITHOUT_PYTHON = ("core", "runner", "ops")
# These can be used where the native library is not built.
WITHOUT_NATIVE_CODE = ("trace", "graph", "viz", "errors", "config", "_tf_internals")


def sources(folder, pattern="*.py"):
    """Return the source files below a folder, but not what a build made."""
    left_out = {"build", "dist", "_build_info.py", "__pycache__"}
    return [path for path in sorted(folder.rglob(pattern)) if not left_out & set(path.parts)]


PACKAGE_FILES = sources(PACKAGE)
TEST_FILES = sources(ROOT / "tests", "test_*.py")
KERNELS = ROOT / "kernels"
C_PLUS_PLUS_FILES = sources(KERNELS, "*.h") + sources(KERNELS, "*.cc")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE_FILES
}
by_path = pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda p: str(p.relative_to(ROOT)))


def parse(path):
    return ast.parse(path.read_text(), str(path))


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_in(tree):
    """Yield the import statements that run, in functions too, but not those for type checkers."""
    if isinstance(tree, (ast.Import, ast.ImportFrom)):
        yield tree
    for node in tree.orelse if is_type_checking(tree) else ast.iter_child_nodes(tree):
        yield from imports_in(node)


def names_of(statement):
    """Yield the dotted names that an import statement may load."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    assert statement.level == 0, "relative imports hide what room they come from"
    for alias in statement.names:
        yield f"{statement.module}.{alias.name}"


def imported_modules(path):
    """Return the modules of the package that a file of it imports."""
    found = set()
    for statement in imports_in(parse(path)):
        for name in names_of(statement):
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {""}


def room_of(module):
    return "__init__" if module == "terra_tf" else module.split(".")[1]


def module_of(path):
    return next(module for module, other in MODULES.items() if other == path)


# --------------------------------------------------------------------- imports


@by_path
def test_every_module_is_in_a_known_room(path):
    assert room_of(module_of(path)) in LEVEL_OF_ROOM


@by_path
def test_imports_go_down_only(path):
    room = room_of(module_of(path))
    upward = [
        module
        for module in imported_modules(path)
        if room_of(module) != room and LEVEL_OF_ROOM[room_of(module)] >= LEVEL_OF_ROOM[room]
    ]
    assert not upward, f"{path.name} imports {upward} from a higher room, or one beside it"


def test_imports_have_no_cycle():
    imports = {module: imported_modules(path) - {module} for module, path in MODULES.items()}
    order = list(graphlib.TopologicalSorter(imports).static_order())  # raises at a cycle
    assert set(order) == set(MODULES)


@by_path
def test_only_tf_internals_imports_private_tensorflow(path):
    private = [
        name
        for statement in imports_in(parse(path))
        for name in names_of(statement)
        if name.startswith(("tensorflow.python", "tensorflow.core", "keras.src"))
    ]
    assert path.name == "_tf_internals.py" or not private


@by_path
def test_functions_do_not_import_the_package(path):
    hidden = [
        ast.unparse(statement)
        for function in ast.walk(parse(path))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for statement in imports_in(function)
        if any(name.startswith("terra_tf") for name in names_of(statement))
    ]
    assert not hidden


@by_path
def test_rooms_without_native_code_do_not_load_it(path):
    if room_of(module_of(path)) in WITHOUT_NATIVE_CODE:
        assert "terra_tf._native" not in imported_modules(path)
    else:
        assert LEVEL_OF_ROOM[room_of(module_of(path))] >= LEVEL_OF_ROOM["_native"]


# -------------------------------------------------------------------- includes


def included_in(text):
    """Return the files of `kernels` that a source text includes, as paths below it."""
    return re.findall(r'^#include "kernels/([^"]+)"', text, re.MULTILINE)


def upward_includes(name, text):
    """Return the includes of a file that its room may not have; `name` is its path in `kernels`."""
    room = name.partition("/")[0]

    def is_allowed(included):
        other = included.partition("/")[0]
        if room in WITHOUT_PYTHON and other not in WITHOUT_PYTHON:
            return False
        return other == room or LEVEL_OF_NATIVE_ROOM[other] < LEVEL_OF_NATIVE_ROOM[room]

    return [included for included in included_in(text) if not is_allowed(included)]


def name_in_kernels(path):
    return path.relative_to(KERNELS).as_posix()


NATIVE_FILES = [path for path in C_PLUS_PLUS_FILES if path.parent != KERNELS]
by_native_path = pytest.mark.parametrize("path", NATIVE_FILES, ids=name_in_kernels)


@by_native_path
def test_every_native_file_is_in_a_known_room(path):
    assert path.parent.parent == KERNELS and path.parent.name in LEVEL_OF_NATIVE_ROOM


@by_native_path
def test_includes_go_down_only(path):
    upward = upward_includes(name_in_kernels(path), path.read_text())
    assert not upward, f"{path} includes {upward} from a higher room, or one beside it"


def test_includes_have_no_cycle():
    includes = {name_in_kernels(path): set(included_in(path.read_text())) for path in NATIVE_FILES}
    order = list(graphlib.TopologicalSorter(includes).static_order())  # raises at a cycle
    assert set(order) == set(includes)


@by_native_path
def test_only_bindings_throw(path):
    code = re.sub(r"//.*", "", path.read_text())
    throws = re.search(r"\b(throw|try|catch)\b", code)
    assert path.parent.name == "bindings" or path.stem.endswith("_test") or not throws


MAX_MEMBERS = 20
MAX_METHODS = 40


def classes_in(text):
    """Yield the name and the lines of each class of a header, as clang-format lays them out."""
    text = re.sub(r" *//.*", "", text)
    for found in re.finditer(r"^class (\w+)[^;{]*\{\n(.*?)^\};", text, re.DOTALL | re.MULTILINE):
        yield found[1], found[2]


def members_and_methods(body):
    """Return the names of a class's data members, and of its methods."""
    # Inner types and the bodies of methods are indented more, and end with their brace.
    body = re.sub(
        r"^  (struct|class|enum class) \w+ \{.*?^  \};", "", body, flags=re.DOTALL | re.MULTILINE
    )
    body = re.sub(
        r"^ ( using | public| private| protected| friend).*", "", body, flags=re.MULTILINE
    )
    statements = re.findall(r"^  \w.*?(?:;$|\}$)", body, re.DOTALL | re.MULTILINE)
    members = [s for s in statements if re.search(r"\b\w+_(\s*=|\{|;)", s.split("(")[0] + ";")]
    return members, [s for s in statements if s not in members]


@pytest.mark.parametrize(
    "path", [path for path in NATIVE_FILES if path.suffix == ".h"], ids=name_in_kernels
)
def test_classes_are_small(path):
    for name, body in classes_in(path.read_text()):
        members, methods = members_and_methods(body)
        assert len(members) <= MAX_MEMBERS, (name, members)
        assert len(methods) <= MAX_METHODS, (name, methods)


def test_classes_have_no_friends():
    friends = [path for path in NATIVE_FILES if re.search(r"^ *friend ", path.read_text(), re.M)]
    assert not friends


def test_bazel_has_a_library_for_each_room():
    text = (KERNELS / "BUILD").read_text()
    rooms = ast.literal_eval(re.search(r"^ROOMS = (\{.*?^\})", text, re.DOTALL | re.MULTILINE)[1])
    assert {"core", *rooms} == set(LEVEL_OF_NATIVE_ROOM)
    for room, lower_rooms in rooms.items():
        assert not upward_includes(room + "/a.h", "".join(map(include_of, lower_rooms)))


def include_of(room):
    return f'#include "kernels/{room}/a.h"\n'


# ----------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "path", PACKAGE_FILES + C_PLUS_PLUS_FILES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_under_500_lines(path):
    num_lines = path.read_text().count("\n")
    assert num_lines < MAX_LINES


@by_path
def test_modules_have_a_docstring(path):
    assert ast.get_docstring(parse(path))


# ----------------------------------------------------------------------- tests


def called_name(call):
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_assertion(node):
    """Say whether a node can make a test fail: an assert, pytest.raises, or a checking helper."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = called_name(node)
    return name in ("raises", "warns", "fail") or bool(re.match(r"_?(assert|check)_", name))


def functions_that_can_fail(tree):
    """Return the functions of a file that assert, or call one of the same file that does."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    failing, num_known = set(), -1
    while len(failing) != num_known:
        num_known = len(failing)
        for function in functions:
            nodes = list(ast.walk(function))
            calls = {called_name(node) for node in nodes if isinstance(node, ast.Call)}
            if calls & failing or any(map(is_assertion, nodes)):
                failing.add(function.name)
    return failing


def find_tests(tree):
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [function for function in functions if function.name.startswith("test_")]


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_test_can_fail(path):
    tree = parse(path)
    can_fail = functions_that_can_fail(tree)
    assert not [f"{t.name}, line {t.lineno}" for t in find_tests(tree) if t.name not in can_fail]


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_test_hides_another_of_the_same_name(path):
    names = [node.name for node in ast.iter_child_nodes(parse(path)) if hasattr(node, "name")]
    assert len(names) == len(set(names))


# ------------------------------------------------------------- the rules' rules


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("assert x", True),
        ("with pytest.raises(E): f()", True),
        ("assert_equal(a, b)", True),
        ("testing.check_graph(g)", True),
        ("f(x)", False),
        ("assertion = 1", False),
        ("checked_f(x)", False),
    ],
)
def test_assertions_are_recognized(source, is_one):
    assert any(map(is_assertion, ast.walk(ast.parse(source)))) == is_one


def test_assertions_in_helpers_of_the_file_count():
    tree = ast.parse(
        "def test_a(): f()\ndef f(): g()\ndef g(): assert 1\ndef test_b(): h()\ndef h(): pass\n"
    )
    assert functions_that_can_fail(tree) == {"test_a", "f", "g"}
    assert [test.name for test in find_tests(tree)] == ["test_a", "test_b"]


@pytest.mark.parametrize(
    ("room", "included", "is_upward"),
    [
        ("session", "session", False),
        ("session", "cursor", False),
        ("cursor", "session", True),  # from a higher room
        ("ops", "call", True),  # from one beside it
        ("runner", "python", True),
        ("ops", "runner", False),
    ],
)
def test_includes_from_higher_rooms_are_found(room, included, is_upward):
    assert bool(upward_includes(f"{room}/b.cc", include_of(included))) == is_upward


def test_members_and_methods_are_counted():
    text = (
        "class A : public B {\n public:\n  A() : x_(0) {}\n  int x() const { return x_; }\n"
        "  void F(int a,\n         int b);  // a = 1;\n  template <typename T>\n  T G();\n\n"
        " private:\n  struct S {\n    int y_;\n  };\n  int x_ = 0;\n  B* const b_;\n"
        "  std::vector<S> all_{1};\n};\n"
    )
    ((name, body),) = classes_in(text)
    members, methods = members_and_methods(body)
    assert (name, len(members), len(methods)) == ("A", 3, 4)


def test_includes_are_found_in_the_source():
    text = '#include "kernels/a/a.h"\n#include "absl/a.h"\n// #include "kernels/b/b.h"\n'
    assert included_in(text) == ["a/a.h"]


def test_imports_are_found_where_they_run():
    tree = ast.parse(
        "import a\n"
        "from terra_tf.trace import records\n"
        "if TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "def f():\n    import d\n"
    )
    found = [name for statement in imports_in(tree) for name in names_of(statement)]
    assert found == ["a", "terra_tf.trace.records", "c", "d"]
