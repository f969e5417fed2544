"""The peer by hand: ResNet-50 trained in plain JAX, NHWC, data parallel by shard_map, momentum and weight decay.

python benchmarks/peers/jax_resnet50.py --devices 2 --batch 8

The update runs on the devices, with gradients averaged between them and buffers donated: what one would write for
speed. Needs only jax and numpy.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--devices", type=int, default=2)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--image-size", type=int, default=224)
parser.add_argument("--blocks", type=int, nargs=4, default=(3, 4, 6, 3), help="bottlenecks in each stage")
parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
arguments = parser.parse_args()
if arguments.smoke:
    arguments.batch, arguments.image_size, arguments.steps = 2 * arguments.devices, 32, 2
    arguments.blocks = (1, 1, 1, 1)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

if not arguments.cuda:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.devices)

DTYPE = jnp.bfloat16 if arguments.precision == "bfloat16" else jnp.float32
STAGES = [(64, 1), (128, 2), (256, 2), (512, 2)]  # width, stride


@jax.custom_vjp
def conv1x1(x, w):
    return (x.reshape(-1, x.shape[3]) @ w).reshape(*x.shape[:3], w.shape[1])


def conv1x1_forward(x, w):
    return conv1x1(x, w), (x, w)


def conv1x1_backward(kept, g):
    x, w = kept
    rows = g.reshape(-1, g.shape[3])
    return (rows @ w.T).reshape(x.shape), x.reshape(-1, x.shape[3]).T @ rows


conv1x1.defvjp(conv1x1_forward, conv1x1_backward)


def conv(x, w, stride):
    size = w.shape[0]
    w = w.astype(DTYPE)
    if size == 1:
        return conv1x1(x[:, ::stride, ::stride] if stride > 1 else x, w[0, 0])
    padding = ((size // 2, size // 2),) * 2
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def max_pool(x):
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    return jax.tree.reduce(
        jnp.maximum, [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    )


def batch_norm(x, params, name):
    wide = x.astype(jnp.float32)
    mean = wide.mean((0, 1, 2))
    variance = (wide * wide).mean((0, 1, 2)) - mean * mean
    scale = params[name + ".gamma"] * lax.rsqrt(variance + 1e-5)
    return (wide * scale + (params[name + ".beta"] - mean * scale)).astype(x.dtype)


def initial(rng):
    params = {}

    def add(name, size, channels, filters):
        scale = (2 / (size * size * channels)) ** 0.5
        params[name] = (rng.standard_normal((size, size, channels, filters)) * scale).astype("float32")
        params[name + ".gamma"] = np.ones(filters, "float32")
        params[name + ".beta"] = np.zeros(filters, "float32")

    add("stem", 7, 3, 64)
    channels = 64
    for stage, ((width, _), blocks) in enumerate(zip(STAGES, arguments.blocks, strict=True)):
        for block in range(blocks):
            add(f"{stage}.{block}.1", 1, channels, width)
            add(f"{stage}.{block}.2", 3, width, width)
            add(f"{stage}.{block}.3", 1, width, 4 * width)
            if block == 0:
                add(f"{stage}.{block}.shortcut", 1, channels, 4 * width)
            channels = 4 * width
    params["fc"] = (rng.standard_normal((2048, 1000)) * 0.01).astype("float32")
    params["fc.bias"] = np.zeros(1000, "float32")
    return params


def loss_of(params, images, labels):
    def normed(x, name, stride=1):
        return batch_norm(conv(x, params[name], stride), params, name)

    x = max_pool(jax.nn.relu(normed(images.astype(DTYPE), "stem", 2)))
    for stage, ((_, first_stride), blocks) in enumerate(zip(STAGES, arguments.blocks, strict=True)):
        for block in range(blocks):
            name, stride = f"{stage}.{block}.", first_stride if block == 0 else 1
            y = jax.nn.relu(normed(x, name + "1"))
            y = jax.nn.relu(normed(y, name + "2", stride))
            y = normed(y, name + "3")
            x = jax.nn.relu(y + (normed(x, name + "shortcut", stride) if block == 0 else x))
    logits = x.astype(jnp.float32).mean((1, 2)) @ params["fc"] + params["fc.bias"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def step(params, velocity, images, labels):
    loss, gradients = jax.value_and_grad(loss_of)(params, images, labels)
    loss, gradients = lax.pmean((loss, gradients), "data")
    velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 1e-4 * p, velocity, gradients, params)
    return jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity), velocity, loss


mesh = Mesh(jax.devices()[: arguments.devices], ("data",))
same, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
rng = np.random.default_rng(0)
params = jax.device_put(initial(rng), same)
velocity = jax.tree.map(jnp.zeros_like, params)
shape = (arguments.batch, arguments.image_size, arguments.image_size, 3)
images = jax.device_put(rng.standard_normal(shape, dtype="float32"), split)
labels = jax.device_put(rng.integers(0, 1000, arguments.batch, dtype="int32"), split)

started = time.perf_counter()
mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("data"), P("data")), out_specs=P(), check_vma=False)
program = jax.jit(mapped, donate_argnums=(0, 1)).lower(params, velocity, images, labels).compile()
compiled = time.perf_counter()
seconds = []
for _ in range(arguments.steps + 1):
    begun = time.perf_counter()
    params, velocity, loss = program(params, velocity, images, labels)
    jax.block_until_ready(params)
    seconds.append(time.perf_counter() - begun)
figures = {
    "images_per_s": round(arguments.batch / min(seconds[1:]), 3),
    "step_s": [round(s, 4) for s in seconds[1:]],
    "compile_s": round(compiled - started, 2),
    "to_first_step_s": round(compiled - started + seconds[0], 2),
    "max_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
}
if statistics := jax.devices()[0].memory_stats():
    figures["device_peak_gb"] = round(statistics["peak_bytes_in_use"] / 1e9, 3)
print(json.dumps({"benchmark": "peer_jax", **vars(arguments), **figures, "jax": jax.__version__}))
