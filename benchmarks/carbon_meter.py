"""What metering costs a training process: CPU seconds of the meter per second of the job.

    python benchmarks/carbon_meter.py --seconds 60

Processor time, not wall time, so that other work on the machine does not count. The main thread
sleeps; whatever the process uses meanwhile is the meter's (its thread, codecarbon's, and their
start is told apart).
"""

from __future__ import annotations

import argparse
import time

from core.carbon.meter import EnergyMeter, EnergySample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--interval", type=float, default=5.0)
    options = parser.parse_args()
    samples: list[EnergySample] = []
    meter = EnergyMeter(samples.extend, print, interval_s=options.interval)
    begun_s = time.process_time()
    meter.start()
    started_s = time.process_time()
    time.sleep(options.seconds)
    spent_s = time.process_time() - started_s
    meter.stop()
    print(f"start: {started_s - begun_s:.2f} CPU s, once")
    print(f"running: {spent_s / options.seconds:.3%} of one core")
    print(f"{len(samples)} samples, {sorted({(s.device, s.method) for s in samples})}")


if __name__ == "__main__":
    main()
