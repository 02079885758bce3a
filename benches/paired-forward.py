#!/usr/bin/env python3
"""Our forward pass against OpenVINO's, in turns (A B A B …): medians of ms per window, and of their ratio.

    cargo build --release --package tonearm-stages --example forward
    benches/paired-forward.py PYTHON_WITH_OPENVINO [RUNS [MODEL…]]
"""

import statistics, subprocess, sys

python, runs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100


def start(*command):
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def ms(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


for model in sys.argv[3:] or ["musicnn-mtt", "musicnn-msd", "vgg-mtt", "vgg-msd"]:
    folder = f"models/repository/{model}/1.0.0"
    for precision, hint in [("bfloat16", "bf16"), ("float32", "f32")]:
        ours = start("target/release/examples/forward", folder, precision, "0", "lines")
        theirs = start(python, "benches/peers-forward.py", f"{folder}/model.pt", "--precision", hint, "--lines")
        pairs = [(ms(ours), ms(theirs)) for _ in range(runs + 10)][10:]
        for process in [ours, theirs]:
            process.stdin.close()
            process.wait()
        a, b = (statistics.median(column) for column in zip(*pairs))
        ratio = statistics.median(b / a for a, b in pairs)
        best = [min(column) for column in zip(*pairs)]
        print(f"{model} {precision}: ours {a:.2f} ms, OpenVINO {b:.2f} ms, {ratio:.2f} times; least {best[0]:.2f} and {best[1]:.2f}", flush=True)
