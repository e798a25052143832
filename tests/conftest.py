"""Fixtures for all rooms, and one thread per process: tests run side by side."""

import os

# before anything imports torch: small models gain nothing from more threads, and threads of two
# test processes spin against one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ("tests.fixtures.models", "tests.fixtures.services")
