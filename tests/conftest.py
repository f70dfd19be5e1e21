"""One CPU device, programs compiled fast rather than well and kept: compiling is what makes these
tests slow.
"""

import collections
import gc
import itertools
import os
import pathlib
import signal

from tests.flags import FAST

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# PyTorch's products are tiny here, and a second thread waits for its share of them by counting
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "xla_backend_optimization_level" not in (_flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{_flags} {FAST}".strip()

# for the processes that tests start too
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import hypothesis
import jax
import pytest

# HYPOTHESIS_PROFILE=long tries many more; no deadline, because other tests run beside
hypothesis.settings.register_profile("default", max_examples=60, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=5000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_of_some_files_at_a_time():
    """Each holds hundreds of memory maps, of which Linux allows a process 65,530: with more,
    compiling crashes. They are also most of the memory that a process of tests takes.

    Clearing takes half a second, and the next file begins by tracing again what files share.
    """
    yield
    if _is_crowded():
        jax.clear_caches()
        gc.collect()


def _is_crowded():
    process = pathlib.Path("/proc/self")
    if not process.joinpath("maps").exists():  # no Linux
        return True
    maps = process.joinpath("maps").read_bytes().count(b"\n")
    pages = int(process.joinpath("statm").read_text().split()[1])
    return maps > 20_000 or pages * os.sysconf("SC_PAGE_SIZE") > 3 * 2**30


@pytest.fixture(autouse=True)
def _settings_of_jax_stay():
    """`t2i compile` changes them for its process, which here is that of other tests too."""
    names = ("jax_platforms", "jax_enable_compilation_cache", "jax_optimization_level")
    before = {name: jax.config.values[name] for name in names}
    yield
    for name, value in before.items():
        if jax.config.values[name] != value:
            jax.config.update(name, value)


def pytest_sessionstart():
    """A shell has what it starts in the background ignore SIGINT, and tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is imported by now stays: it is not looked through for garbage again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_collection_modifyitems(items):
    """The files that take longest come first: two processes that share the files then end together.

    Last come those that load the TPU compiler: beside it, and without a TPU, JAX's profiler crashes
    the process.
    """
    long = (
        "test_docs.py",
        "e2e",
        "test_eight_devices.py",
        "test_processes.py",
        "test_imagen.py",
        "test_unet.py",
    )
    last = ("test_compile.py", "test_ahead.py", "test_fused_attention.py")
    order = (*long, "others", *last)

    def rank(item):
        place = next((part for part in order if part in item.path.parts), "others")
        return order.index(place)

    items.sort(key=rank)


def pytest_assertrepr_compare(op, left, right):
    """Of two programs that are not equal, the first lines that differ: whole, they push everything
    else out of a log.
    """
    if op != "==" or not (isinstance(left, str) and isinstance(right, str)):
        return None
    if len(left) + len(right) < 20_000:
        return None
    lines = (text.splitlines(keepends=True) for text in (left, right))
    pairs = enumerate(itertools.zip_longest(*lines), 1)
    line, (mine, theirs) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    told = (f"{side}: {text!r:.300}" for side, text in (("left", mine), ("right", theirs)))
    return [f"two long texts that differ in line {line}", *told]


def pytest_terminal_summary(terminalreporter):
    """Where the time of a long run went, by file: what to look at when the tests become slow."""
    spent = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                spent[report.nodeid.partition("::")[0]] += report.duration
    if spent.total() < 600:
        return
    terminalreporter.section(f"seconds by file, {spent.total():.0f} in all processes")
    for name, seconds in spent.most_common(40):
        terminalreporter.write_line(f"{seconds:6.0f}  {name}")


@pytest.fixture
def key():
    """A PRNG key; tests fold in numbers where they need several."""
    return jax.random.key(0)
