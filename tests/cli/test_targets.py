"""Finding the App: each form of a target, and each way in which there is none."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncpar.cli.targets import Found, UserCodeError, find_app
from asyncpar.errors import TargetError
from tests.cli.program import write

HANDLER = (
    'from asyncpar import topic\n@topic("{0}", group="g", name="{0}")\nasync def {0}(body: bytes): ...\n'
)
APP = (
    'from asyncpar import App\n{0} = App("{0}", group="g")\n'
    '@{0}.topic("t-{0}", name="h-{0}")\nasync def on_{0}(body: bytes): ...\n'
)


@pytest.fixture(autouse=True)
def fresh_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test imports from an empty folder, and leaves no module and no path behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or str(tmp_path)
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def _find(target: str, *, app_dir: Path = Path(), factory: bool = False) -> Found:
    return find_app(target, app_dir=app_dir, factory=factory)


def _names(found: Found) -> list[str]:
    return [spec.name for spec in found.app.handlers]


def _refused(target: str, *, factory: bool = False) -> str:
    with pytest.raises(TargetError) as caught:
        _find(target, factory=factory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_module_and_app(tmp_path: Path):
    """`module:app` is that App, also where the module has several."""
    write(tmp_path, {"mine": APP.format("one") + APP.format("two")})
    assert _names(_find("mine:two")) == ["h-two"]


def test_module_with_a_single_app(tmp_path: Path):
    """`module` is its only App; a second name for it does not make it two."""
    write(tmp_path, {"mine": APP.format("one") + "again = one\n"})
    assert _names(_find("mine")) == ["h-one"]


def test_module_with_bare_functions(tmp_path: Path):
    """`module` without an App runs its own decorated functions, in their order, and no imported ones."""
    write(tmp_path, {"other": HANDLER.format("far")})
    write(
        tmp_path,
        {"mine": "from other import far\n" + HANDLER.format("b") + HANDLER.format("a") + "alias = a\n"},
    )
    assert _names(_find("mine")) == ["b", "a"]


def test_a_module_below_a_package(tmp_path: Path):
    """`package:module` is the app of package.module when the package has no App of that name."""
    write(tmp_path, {"shop/__init__": "", "shop/bills": HANDLER.format("bill")})
    assert _names(_find("shop:bills")) == ["bill"]
    assert _names(_find("shop.bills")) == ["bill"]


def test_a_module_hidden_by_a_function_of_the_same_name(tmp_path: Path):
    """A package that exports a function named like its module does not hide the module's handlers."""
    write(tmp_path, {"shop/__init__": "from shop.bill import bill\n", "shop/bill": HANDLER.format("bill")})
    assert _names(_find("shop:bill")) == ["bill"]


def test_app_dir_goes_first(tmp_path: Path):
    """`--app-dir` wins over the rest of the path."""
    write(tmp_path / "deep", {"mine": HANDLER.format("deep")})
    write(tmp_path, {"mine": HANDLER.format("shallow")})
    sys.path.insert(0, str(tmp_path))
    assert _names(_find("mine", app_dir=Path("deep"))) == ["deep"]


def test_a_file(tmp_path: Path):
    """`dir/file.py` and `dir/file.py:app` name a file."""
    write(tmp_path, {"jobs/mine": APP.format("one")})
    assert _names(_find("jobs/mine.py")) == ["h-one"]
    assert _names(_find("jobs/mine.py:one")) == ["h-one"]


def test_a_file_in_a_package_keeps_its_relative_imports(tmp_path: Path):
    """A file whose folder is a package is imported as a part of that package."""
    write(tmp_path, {"shop/__init__": "", "shop/names": "TOPIC = 'orders'\n"})
    write(tmp_path, {"shop/bills": "from .names import TOPIC\n" + HANDLER.format("bill")})
    assert _names(_find("shop/bills.py")) == ["bill"]


def test_a_file_with_the_name_of_a_library_is_refused(tmp_path: Path):
    """A file named like a loaded module would silently run that module instead."""
    write(tmp_path, {"queue": HANDLER.format("bill")})
    import queue  # noqa: F401 -- loaded, as it always is in a run

    assert "its name 'queue' is taken by" in _refused("queue.py")


def test_a_missing_file_names_near_ones(tmp_path: Path):
    """A misspelt file name suggests the file that is there."""
    write(tmp_path, {"jobs/bills": ""})
    assert "file jobs/bill.py does not exist" in _refused("jobs/bill.py")
    assert "did you mean bills.py?" in _refused("jobs/bill.py")
    assert "file ./jobs is a folder" in _refused("./jobs")


def test_a_factory(tmp_path: Path):
    """`--factory` calls the function and takes its App."""
    write(tmp_path, {"mine": APP.format("one") + "def create_app():\n    return one\n"})
    assert _names(_find("mine:create_app", factory=True)) == ["h-one"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mine", "--factory needs the function's name"),
        ("mine:one", "one is an App already; leave --factory out"),
        ("mine:creat", "creat is no function; did you mean create?"),
        ("mine:create", "the factory returned int; return an App"),
        ("mine:later", "the factory later is async"),
    ],
)
def test_a_wrong_factory(tmp_path: Path, target: str, says: str):
    """What is no factory, or makes no App, is said."""
    text = "def create():\n    return 1\nasync def later(): ...\n"
    write(tmp_path, {"mine": APP.format("one") + text})
    assert says in _refused(target, factory=True)


def test_a_factory_that_raises_is_the_users_error(tmp_path: Path):
    """An exception inside of a factory is shown as such."""
    write(tmp_path, {"mine": "def create():\n    raise ValueError('no database')\n"})
    with pytest.raises(
        UserCodeError, match=r"calling mine:create raised ValueError: no database, mine\.py:2"
    ):
        _find("mine:create", factory=True)


def test_a_factory_written_as_a_call_says_what_to_write(tmp_path: Path):
    """`module:create()` is how other runners want it."""
    write(tmp_path, {"mine": "def create(): ...\n"})
    for factory in (False, True):
        assert _refused("mine:create()", factory=factory).endswith("write mine:create and add --factory")


@pytest.mark.parametrize("target", [".", "..", ".mine", "mine..x"])
def test_a_relative_name_is_refused_as_a_target(tmp_path: Path, target: str):
    """A dot is no module, and the message of importlib about packages helps nobody."""
    write(tmp_path, {"mine": "x = 1\n"})
    assert "names no module; write module, module:app or dir/file.py" in _refused(target)


def test_the_name_that_was_given_is_not_proposed(tmp_path: Path):
    """What exists but is no App needs another fix than its own name."""
    write(tmp_path, {"mine": "bill = 3\nbills = 4\n"})
    message = _refused("mine:bill")
    assert "bill in mine is an object of type int, not an App" in message
    assert "did you mean" not in message


def test_several_apps_must_be_told_apart(tmp_path: Path):
    """A module with two Apps lists what to write."""
    write(tmp_path, {"mine": APP.format("one") + APP.format("two")})
    assert "several Apps in mine; name one: mine:one or mine:two" in _refused("mine")


def test_an_app_beside_functions_that_it_does_not_include_is_refused(tmp_path: Path):
    """A handler that would never run is an error, not a surprise."""
    write(tmp_path, {"mine": APP.format("one") + HANDLER.format("bill")})
    message = _refused("mine")
    assert "bill in mine carry @topic but are not part of the App" in message
    assert "one.include(__name__)" in message


def test_an_app_that_includes_its_module_is_fine(tmp_path: Path):
    """`app.include(__name__)` makes bare functions a part of the App."""
    write(tmp_path, {"mine": APP.format("one") + HANDLER.format("bill") + "one.include(__name__)\n"})
    assert sorted(_names(_find("mine"))) == ["bill", "h-one"]


def test_an_app_that_was_named_only_warns_of_left_out_functions(tmp_path: Path):
    """Who names the App may leave functions out on purpose, but is told."""
    write(tmp_path, {"mine": APP.format("one") + HANDLER.format("bill")})
    found = _find("mine:one")
    assert _names(found) == ["h-one"]
    assert "would not run" in found.warnings[0]


def test_functions_of_another_app_of_the_module_are_not_left_out(tmp_path: Path):
    """With two Apps in a module each function counts as taken when either of them has it."""
    write(tmp_path, {"mine": APP.format("one") + APP.format("two")})
    assert _find("mine:one").warnings == ()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mine:app", "mine has no App named app, and there is no module mine.app"),
        ("mine:onn", "did you mean one"),
        ("mine:bill", "bill in mine is a handler (run its module: mine)"),
        ("mine:create", "create in mine is a function, not an App (if it returns an App, add --factory)"),
        ("mine:SIZE", "SIZE in mine is an object of type int, not an App"),
        (":app", "names no module"),
    ],
)
def test_what_is_no_app_is_said_with_both_tries(tmp_path: Path, target: str, says: str):
    """`module:name` that is neither an App nor a module below lists both and near names."""
    write(tmp_path, {"mine": HANDLER.format("bill") + APP.format("one") + "SIZE = 1\ndef create(): ...\n"})
    assert says in _refused(target)


def test_a_missing_module_below_a_package_names_near_ones(tmp_path: Path):
    """The part that is missing is named, with what the package has instead."""
    write(tmp_path, {"shop/__init__": "", "shop/bills": HANDLER.format("bill")})
    assert "there is no module shop.bill in" in _refused("shop.bill")
    assert "did you mean bills?" in _refused("shop.bill")


def test_a_package_without_handlers_names_its_modules(tmp_path: Path):
    """A package that has none itself points at the modules below it."""
    write(tmp_path, {"shop/__init__": "", "shop/bills": HANDLER.format("bill")})
    assert "or name a module below it: bills" in _refused("shop")


def test_an_error_in_a_module_below_is_not_taken_for_not_found(tmp_path: Path):
    """`package:module` whose module fails shows that failure."""
    write(tmp_path, {"shop/__init__": "", "shop/bills": "import nothing_of_the_kind\n"})
    with pytest.raises(UserCodeError, match="nothing_of_the_kind"):
        _find("shop:bills")


def test_a_missing_sibling_is_not_taken_for_the_target(tmp_path: Path):
    """A target that imports a missing module of its own package fails as the user's error."""
    write(tmp_path, {"shop/__init__": "", "shop/bills": "import shop.nothing\n"})
    with pytest.raises(UserCodeError, match=r"No module named 'shop\.nothing'"):
        _find("shop.bills")
