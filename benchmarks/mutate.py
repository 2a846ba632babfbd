"""Puts bugs in on purpose, one at a time, and reports which of them the tests let through.

    make mutate FILES="odeformer/ode/steps.py train/step.py"
    python -m benchmarks.mutate --list

The bugs stand in tests/mutants/*.toml: a file, a text that occurs in it once, its replacement, why
somebody could write that, and the tests that should notice. Each is put into a temporary copy of
the checkout, where those tests run; without it they must pass, in 30 CPU seconds at most.
"""

import argparse
import dataclasses
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "tests/mutants"

# Of the tests of one mutant, without it; and where a mutant that never ends is stopped.
MOST_CPU_SECS = 30
LIMIT_CPU_SECS = 150

# pytest under that limit, which the process sets itself: a fork that sets it in between is unsafe
# where threads run.
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""

KILLED, SURVIVED, STOPPED = "killed", "SURVIVED", "stopped"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug to put in.

    Attributes:
      file: that it is put into, from the checkout's root.
      text: what it replaces, which occurs in the file once.
      replacement: what stands there instead.
      why: what is wrong with it, or who would write it.
      tests: what should notice it, as pytest takes them.
      equivalent: why nothing can notice it, and it is not run; '' if something should.
    """

    file: str
    text: str
    replacement: str
    why: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def applied(self, source: str) -> str:
        """Returns the file's text with the bug in it.

        Raises:
          ValueError: the text does not occur exactly once.
        """
        if source.count(self.text) != 1:
            raise ValueError(
                f"{self.file} holds {self.text!r} {source.count(self.text)} times; a mutant "
                "replaces a text that occurs once: renew it in tests/mutants/"
            )
        return source.replace(self.text, self.replacement)


def read_mutants(folder: pathlib.Path = MUTANTS) -> list[Mutant]:
    """Returns the mutants of all files in a folder, in order."""
    mutants = []

    for path in sorted(folder.glob("*.toml")):
        for module in tomllib.loads(path.read_text())["module"]:
            for entry in module["mutants"]:
                tests = tuple(entry.pop("tests", module["tests"]))
                mutants.append(Mutant(file=module["file"], tests=tests, **entry))

    return mutants


def copy_checkout(target: pathlib.Path, root: pathlib.Path = ROOT) -> None:
    """Copies the files that git tracks, or would, as they are now."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)

    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def run_tests(folder: pathlib.Path, tests: Sequence[str]) -> tuple[str, float, str]:
    """Runs tests in a copy: what came of a bug in it, the CPU seconds, and what they printed."""
    # Programs that the mutant leaves as they are need not be compiled again. No bytecode: Python
    # tells a changed file by size and second, which a mutant may share with the last.
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / ".compiled"),
    }
    options = ["-x", "-n", "0", "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", LIMITED, str(LIMIT_CPU_SECS), *options, *tests]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_secs = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # Where the tests, or what they import, cannot be imported, the bug is noticed too.
    if done.returncode < 0:
        return STOPPED, cpu_secs, done.stdout
    return KILLED if done.returncode else SURVIVED, cpu_secs, done.stdout


def try_mutants(
    mutants: Sequence[Mutant], folder: pathlib.Path
) -> Iterator[tuple[Mutant, str, float]]:
    """Yields each mutant with what came of it and the CPU seconds; the copy is left unchanged.

    Raises:
      RuntimeError: the tests fail without a mutant.
    """
    clean: set[tuple[str, ...]] = set()

    for mutant in mutants:
        if mutant.tests not in clean:
            result, cpu_secs, output = run_tests(folder, mutant.tests)
            if result != SURVIVED:
                raise RuntimeError(f"without a mutant {mutant.tests} fail:\n{output[-2000:]}")
            if cpu_secs > MOST_CPU_SECS:
                print(f"{' '.join(mutant.tests)}: {cpu_secs:.0f} CPU seconds; take fewer tests")
            clean.add(mutant.tests)

        path = folder / mutant.file
        source = path.read_text()
        path.write_text(mutant.applied(source))
        try:
            result, cpu_secs, _ = run_tests(folder, mutant.tests)
        finally:
            path.write_text(source)
        yield mutant, result, cpu_secs


def main() -> int:
    """Runs the program; returns 1 if a mutant survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", help="whose mutants are tried; none: all")
    parser.add_argument("--tests", help="run these instead, as for a survivor: --tests tests")
    parser.add_argument("--only", default="", help="of those whose reason contains this")
    parser.add_argument("--list", action="store_true", help="list the mutants, and try none")
    options = parser.parse_args()

    mutants, files = read_mutants(), {path.removeprefix("./") for path in options.files}
    if unknown := files - {mutant.file for mutant in mutants}:
        parser.error(f"no mutant of {', '.join(sorted(unknown))} stands in tests/mutants/")
    chosen = [m for m in mutants if (not files or m.file in files) and options.only in m.why]
    tried = [m for m in chosen if not m.equivalent]
    if options.tests:
        tried = [dataclasses.replace(m, tests=tuple(options.tests.split())) for m in tried]

    if options.list:
        for mutant in chosen:
            print(f"{mutant.file}: {mutant.why}" + (" (equivalent)" if mutant.equivalent else ""))
        return 0

    survived = 0
    with tempfile.TemporaryDirectory(prefix="odeformer-mutants-") as name:
        copy_checkout(pathlib.Path(name))
        for mutant, result, cpu_secs in try_mutants(tried, pathlib.Path(name)):
            survived += result == SURVIVED
            print(f"{result:>8} {cpu_secs:5.0f} s  {mutant.file}: {mutant.why}", flush=True)

    print(f"{len(tried) - survived} of {len(tried)} killed; {len(chosen) - len(tried)} equivalent")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main())
