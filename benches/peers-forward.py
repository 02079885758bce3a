#!/usr/bin/env python3
"""The forward pass of a model in OpenVINO: ms per window on one thread, and its scores.

    pip install openvino numpy
    benches/peers-forward.py models/repository/musicnn-mtt/1.0.0/model.pt [--precision f32|bf16] [--batch N] [--runs N]

A traced TorchScript archive holds its graph as Python; running that text with a `torch` that makes OpenVINO's operations
gives the same network without PyTorch. Prints one JSON object; with --lines, one ms per line for each line on stdin, so that
another program's runs can be interleaved with these.
"""

import argparse, json, pickle, sys, time, types, zipfile

import numpy as np
import openvino as ov
from openvino import opset1, opset13 as op


def read(path):
    """The text of the graph and its constants."""
    archive = zipfile.ZipFile(path)
    root = archive.namelist()[0].split("/")[0]

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if name == "_rebuild_tensor_v2":
                def rebuild(data, offset, size, stride, *_):
                    view = np.lib.stride_tricks.as_strided(data[offset:], size, [s * 4 for s in stride])
                    return np.ascontiguousarray(view)
                return rebuild
            return dict if name == "OrderedDict" else name

        def persistent_load(self, key):
            return np.frombuffer(archive.read(f"{root}/constants/{key[2]}"), np.float32)

    constants = Unpickler(archive.open(f"{root}/constants.pkl")).load()
    return archive.read(f"{root}/code/__torch__.py").decode(), constants


def axes(values):
    return op.constant(np.array(values, np.int64))


class Torch(types.ModuleType):
    def batch_norm(self, x, gamma, beta, mean, variance, training, momentum, eps, cudnn):
        shape = [1, -1] + [1] * (len(x.get_output_shape(0)) - 2)
        scale = gamma / np.sqrt(variance + eps)
        shift = beta - mean * scale
        return op.add(op.multiply(x, scale.reshape(shape)), shift.reshape(shape))

    def unsqueeze(self, x, dim):
        return op.unsqueeze(x, axes([dim]))

    def squeeze(self, x, dim):
        return op.squeeze(x, axes([dim]))

    def constant_pad_nd(self, x, pad):
        left, right, top, bottom = pad
        zero = op.constant(np.float32(0))
        return op.pad(x, axes([0, 0, top, left]), axes([0, 0, bottom, right]), "constant", zero)

    def _convolution(self, x, weight, bias, stride, pad, dilation, *_):
        y = op.convolution(x, op.constant(weight), stride * 2, pad * 2, pad * 2, dilation * 2)
        return op.add(y, bias.reshape(1, -1, 1, 1))

    def relu(self, x):
        return op.relu(x)

    def sigmoid(self, x):
        return op.sigmoid(x)

    def amax(self, x, dims):
        return op.reduce_max(x, axes(dims), False)

    def mean(self, x, dims, keep, dtype):
        return op.reduce_mean(x, axes(dims), keep)

    def max_pool2d(self, x, window, stride, pad, dilation):
        return opset1.max_pool(x, stride, pad, pad, window, "floor", "explicit")

    def cat(self, xs, dim):
        return op.concat(xs, dim)

    def stack(self, xs, dim):
        return op.concat([op.unsqueeze(x, axes([dim])) for x in xs], dim)

    def transpose(self, x, a, b):
        order = list(range(len(x.get_output_shape(0))))
        order[a], order[b] = order[b], order[a]
        return op.transpose(x, axes(order))

    def permute(self, x, order):
        return op.transpose(x, axes(order))

    def flatten(self, x, first, last):
        shape = list(x.get_output_shape(0))
        return op.reshape(x, axes(shape[:first] + [-1] + shape[last + 1:]), False)

    def add(self, a, b):
        return op.add(a, b)

    def linear(self, x, weight, bias):
        return op.add(op.matmul(x, op.constant(weight), False, True), bias)


def build(path, batch):
    text, constants = read(path)
    module = type("Module", (), {})
    scope = {
        "torch": Torch("torch"),
        "Module": module,
        "CONSTANTS": types.SimpleNamespace(**{f"c{i}": value for i, value in enumerate(constants)}),
    }
    exec("from __future__ import annotations\n" + text, scope)
    network = next(v for v in scope.values() if isinstance(v, type) and v is not module and issubclass(v, module))
    window = op.parameter([batch, 187, 96], np.float32, name="window")
    return ov.Model([network().forward(window)], [window])


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("model")
    parse.add_argument("--precision", default="bf16", choices=["f32", "bf16"])
    parse.add_argument("--batch", type=int, default=1)
    parse.add_argument("--runs", type=int, default=50)
    parse.add_argument("--lines", action="store_true")
    args = parse.parse_args()
    compiled = ov.Core().compile_model(build(args.model, args.batch), "CPU", {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": args.precision,
        "PERFORMANCE_HINT": "LATENCY",
    })
    request = compiled.create_infer_request()
    # Values as a log-mel window has them.
    windows = np.random.default_rng(1).uniform(0, 3, [args.batch, 187, 96]).astype(np.float32)
    request.set_input_tensor(ov.Tensor(windows))

    def run():
        start = time.perf_counter()
        request.infer()
        return (time.perf_counter() - start) * 1e3 / args.batch

    for _ in range(10):
        run()
    if args.lines:
        for _ in sys.stdin:
            print(f"{run():.4f}", flush=True)
        return
    times = [run() for _ in range(args.runs)]
    print(json.dumps({"model": args.model, "precision": args.precision, "batch": args.batch, "runs": args.runs,
                      "median_ms": round(float(np.median(times)), 3), "min_ms": round(min(times), 3)}))


if __name__ == "__main__":
    main()
