"""Fixtures for all rooms, and one thread per process: tests run side by side."""

import os
import signal

from hypothesis import settings

# before anything imports torch: small models gain nothing from more threads, and threads of two
# test processes spin against one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell that starts the tests in the background has SIGINT ignored, and every process that a test
# starts would inherit that and be deaf to Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# no test times its examples: a busy machine must not fail a property. Where CI is set, hypothesis
# takes its own profile, which draws the same examples every time.
settings.register_profile("untimed", deadline=None)
if "CI" not in os.environ:
    settings.load_profile("untimed")

pytest_plugins = ("tests.fixtures.models", "tests.fixtures.services")
