#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Energy of a command that is alone on one NVIDIA GPU: joules, mean and largest watts, and the watts of an idle GPU.

usage: energy.py GPU OUTPUT.json NAME COMMAND...     (appends to OUTPUT.json under NAME)

Joules are those of the driver's own counter (NVML, millijoules) from the start to the end of the command; nvidia-smi's power.draw,
sampled every 50 ms and added up, stands beside it. Idle: the 10 s before, with the GPU's memory empty. Standard library only.
"""
import ctypes
import json
import os
import subprocess
import sys
import threading
import time


class Counter:
    def __init__(self, gpu):
        self.lib, self.handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        self.call("nvmlInit_v2")
        self.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(gpu), ctypes.byref(self.handle))

    def call(self, name, *a):
        status = getattr(self.lib, name)(*a)
        if status:
            raise SystemExit("energy.py: %s: error %d" % (name, status))

    def joules(self):
        mj = ctypes.c_ulonglong()
        self.call("nvmlDeviceGetTotalEnergyConsumption", self.handle, ctypes.byref(mj))
        return mj.value / 1000


def sample(run, seen):
    """nvidia-smi's watts with the time at which each line came."""
    for line in run.stdout:
        seen.append((time.time(), float(line)))


def main(gpu, output, name, *command):
    counter, seen = Counter(int(gpu)), []
    smi = subprocess.Popen(["nvidia-smi", "-i", gpu, "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", "50"], stdout=subprocess.PIPE, text=True)
    threading.Thread(target=sample, args=(smi, seen), daemon=True).start()
    mark = lambda: (time.time(), counter.joules())
    time.sleep(2)
    t0, j0 = mark()
    time.sleep(10)
    t1, j1 = mark()
    run = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, stdout=subprocess.PIPE, text=True)
    t2, j2 = mark()
    smi.terminate()
    watts = [w for t, w in seen if t1 <= t <= t2]
    out = json.load(open(output)) if os.path.exists(output) else {}
    out[name] = {"exit": run.returncode, "seconds": round(t2 - t1, 2), "joules": round(j2 - j1, 1), "watts": round((j2 - j1) / (t2 - t1), 1),
                 "joules_by_samples": round(sum(watts) / max(1, len(watts)) * (t2 - t1), 1), "samples": len(watts), "watts_largest": max(watts, default=0),
                 "idle_watts": round((j1 - j0) / (t1 - t0), 1), "report": run.stdout}
    with open(output, "w") as f:
        json.dump(out, f, indent=1)
    print({k: v for k, v in out[name].items() if k != "report"})


main(*sys.argv[1:])
