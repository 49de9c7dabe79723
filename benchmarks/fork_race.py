"""How often a child can load no code when it is forked while a worker of OpenMP ends.

    python -m benchmarks.fork_race

What ``fxgraft/compiling/linking.py`` is about, without Python and torch. A thread has run OpenMP and is over,
so that a worker ends by ``pthread_exit``, for the first of which glibc loads libgcc_s; at about that moment
the program forks, and the child loads a library that needs libgcc_s. Needs gcc, g++ and glibc.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 2000
STEP = 7919  # a prime: delays of up to 300 microseconds, spread evenly
SPREAD = 300_000

WORK = """
#include <stdexcept>
extern "C" int work(int n) {
    int sum = 0;
    #pragma omp parallel num_threads(2) reduction(+ : sum)
    sum += n;
    try { if (sum < 0) throw std::runtime_error(""); } catch (...) {}
    return sum;
}
"""
NEEDS_LIBGCC = """
#include <stdexcept>
#include <string>
struct Holder { std::string text; ~Holder() { text.clear(); } };
extern "C" int f(int n) {
    Holder holder;
    if (n < 0) throw std::runtime_error("");
    return holder.text.size() + n;
}
"""
PROGRAM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static int (*work)(int);
static volatile int done;
static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}
static void *run(void *unused) { work(3); done = 1; return 0; }
int main(int count, char **arguments) {
    work = (int (*)(int)) dlsym(dlopen("./work.so", RTLD_NOW | RTLD_LOCAL), "work");
    void *frames[2];
    if (count > 2) backtrace(frames, 2);
    pthread_t thread;
    pthread_create(&thread, 0, run, 0);
    while (!done) {}
    for (long began = now(); now() - began < atol(arguments[1]);) {}
    pid_t child = fork();
    if (!child) _exit(dlopen("./needs_libgcc.so", RTLD_NOW | RTLD_LOCAL) ? 0 : 3);
    int status;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}
"""


def failures(folder: Path, *remedy: str) -> int:
    """In how many of `RUNS` the child could not load the library."""
    codes = [
        subprocess.run(["./program", str(i * STEP % SPREAD), *remedy], cwd=folder, timeout=10).returncode
        for i in range(1, RUNS + 1)
    ]
    return sum(code != 0 for code in codes)


def main() -> None:
    """Build it, run it without and with the remedy, and print both counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in {"work.cpp": WORK, "needs_libgcc.cpp": NEEDS_LIBGCC, "program.c": PROGRAM}.items():
            (folder / file).write_text(text)
        shared = ["g++", "-O1", "-shared", "-fPIC"]
        for command in (
            [*shared, "-fopenmp", "work.cpp", "-o", "work.so"],
            [*shared, "needs_libgcc.cpp", "-o", "needs_libgcc.so"],
            ["gcc", "-O1", "program.c", "-o", "program", "-ldl", "-lpthread"],
        ):
            subprocess.run(command, cwd=folder, check=True)
        print(f"{' '.join(platform.libc_ver())}, of {RUNS} forks", file=sys.stderr)
        print(
            f"without the remedy {failures(folder)}, with it {failures(folder, 'remedy')} could load no code"
        )


if __name__ == "__main__":
    main()
