"""Commands of selfsight in processes of their own, forked from one that has imported torch."""

import multiprocessing
import os
import socket
import sys
import time
from contextlib import contextmanager

import numpy as np

LIMIT = 120  # seconds that no command here may take, however busy the machine is
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["selfsight.train.pretrain", "selfsight.cli.pretrain", "processes"])


def images(count=48, size=40):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def _run(function, arguments, environment, log):
    os.environ.update(environment)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def _command(words):
    from selfsight.cli import main

    return main(words)


def start(log, function, *arguments, **environment):
    kept = {name: os.environ[name] for name in os.environ if name.startswith("SELFSIGHT_")}
    process = _FORKS.Process(target=_run, args=(function, arguments, kept | environment, str(log)))
    process.daemon = True
    process.start()
    return process


@contextmanager
def running(log, *words, ranks=1, function=_command):
    """`selfsight WORDS`, one process per rank; none is left behind."""
    words = [str(word) for word in words]
    if ranks == 1:
        group = [{}]
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        group = [{**common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(ranks)]
    processes = [start(log, function, words, **environment) for environment in group]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join(LIMIT)
            assert process.exitcode is not None, "an orphan"


def codes(processes):
    """Exit codes; a process that a signal ended has the signal's number, negated."""
    stop = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.1, stop - time.monotonic()))
    return [process.exitcode for process in processes]


def finish(log, *words, ranks=1, function=_command):
    with running(log, *words, ranks=ranks, function=function) as processes:
        return codes(processes)


def wait_for(condition, processes):
    """Until `condition()`, or the processes have ended; no clock decides."""
    stop = time.monotonic() + LIMIT
    while not condition() and all(process.is_alive() for process in processes):
        assert time.monotonic() < stop, "the run hangs"
        time.sleep(0.002)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0
