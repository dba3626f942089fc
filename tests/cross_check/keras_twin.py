"""The paper's own route: BF1 and BF2 written in Keras with larq, converted by Larq Compute Engine's
converter. A script of an environment with TensorFlow: `keras_twin.py WEIGHTS.npz FILE.tflite ARCH KNN BATCH POINTS K`.

Nothing of this project takes part between the weights and the file; only the names in the state_dict are
shared. Features are `[B, N, C]` and messages `[B, N, k, C]`: channels last, as TensorFlow has them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # larq needs Keras 2; read when TensorFlow is imported

import larq
import larq_compute_engine as lce
import numpy as np
import tensorflow as tf
import tf_keras as keras

Weights = Mapping[str, np.ndarray]
sign = larq.quantizers.SteSign()


def nearest(distances: tf.Tensor, k: int) -> tf.Tensor:
    """Indices of the k smallest in each row of `[B, N, N]`; of equal ones the lowest index, as TFLite has it
    too."""
    return tf.math.top_k(-distances, k).indices


def squared_distances(x: tf.Tensor) -> tf.Tensor:
    squares = tf.reduce_sum(tf.square(x), axis=2, keepdims=True)
    return squares - 2.0 * tf.matmul(x, x, transpose_b=True) + tf.transpose(squares, [0, 2, 1])


def hamming_distances(x: tf.Tensor) -> tf.Tensor:
    """d - X X^T of features of +-1: twice the Hamming distances (paper, Eq. 21)."""
    return float(x.shape[2]) - tf.matmul(x, x, transpose_b=True)


def edges(x: tf.Tensor, idx: tf.Tensor, xor: bool) -> tf.Tensor:
    """`[B, N, k, 2C]`: the edge's channels (x_j - x_i, or Eq. 17's -x_j * x_i), then those of x_i."""
    neighbours = tf.gather(x, idx, batch_dims=1)
    centre = tf.tile(tf.expand_dims(x, 2), [1, 1, idx.shape[2], 1])
    edge = -(neighbours * centre) if xor else neighbours - centre
    return tf.concat([edge, centre], axis=3)


def batch_norm(x: tf.Tensor, weights: Weights, name: str) -> tf.Tensor:
    layer = keras.layers.BatchNormalization(epsilon=1e-5)
    y = layer(x)
    layer.set_weights([weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
    return y


def rescaled(x: tf.Tensor, weights: Weights, name: str) -> tf.Tensor:
    """Gamma of Eq. 10: a factor per channel, and the factors of length 1 beside it."""
    for part in ("scale_a", "scale_b", "scale_c"):
        if f"{name}.{part}" in weights:
            x = x * weights[f"{name}.{part}"].reshape(-1)
    return x


def prelu(x: tf.Tensor, weights: Weights, name: str) -> tf.Tensor:
    layer = keras.layers.PReLU(shared_axes=[1, 2])
    y = layer(x)
    layer.set_weights([np.full((1, 1, x.shape[3]), weights[f"{name}.weight"].item(), np.float32)])
    return y


def binary_dot(x: tf.Tensor, weights: Weights, name: str, binary_input: bool = True) -> tf.Tensor:
    """A 1x1 convolution with weights, and unless told otherwise inputs, reduced to their signs by larq."""
    kernel = weights[f"{name}.weights_real"]
    layer = larq.layers.QuantConv2D(
        kernel.shape[0],
        1,
        input_quantizer="ste_sign" if binary_input else None,
        kernel_quantizer="ste_sign",
        kernel_constraint="weight_clip",  # without it larq warns about training
        use_bias=False,
    )
    y = layer(x)
    layer.set_weights([kernel.reshape(kernel.shape[0], -1).T[None, None]])
    return y


def classifier_block(x: tf.Tensor, weights: Weights, name: str) -> tf.Tensor:
    """BatchNorm, sign, binary dot product, Gamma, PReLU on `[B, 1, 1, C]`."""
    x = binary_dot(batch_norm(x, weights, f"{name}.center"), weights, f"{name}.core_op")
    return prelu(rescaled(x, weights, f"{name}.rescale"), weights, f"{name}.activ")


def twin(weights: Weights, arch: str, knn: str, batch: int, points: int, k: int) -> keras.Model:
    """BF1 or BF2 at stage 3 with `weights`, a state_dict of `bgnn.models` as arrays.

    Input f32 `[batch, points, 3]`. Outputs: logits f32 `[batch, classes]`, and the four EdgeConv layers'
    binary features side by side, `[batch, points, sum of channels]` of +-1.
    """
    cloud = keras.Input(batch_shape=(batch, points, 3))
    x = cloud
    features = []
    for layer in range(1, 5):
        first = layer == 1
        distances = hamming_distances if knn == "hamming" and not first else squared_distances
        message = edges(x, nearest(distances(x), k), xor=not first)
        message = binary_dot(message, weights, f"conv{layer}.0", binary_input=not first)
        message = prelu(rescaled(message, weights, f"conv{layer}.1"), weights, f"conv{layer}.2")
        if arch == "bf2":
            message = batch_norm(message, weights, f"bn{layer}")
        x = keras.layers.MaxPool2D((1, k))(message)
        if arch == "bf1":
            x = batch_norm(x, weights, f"bn{layer}")
        x = tf.reshape(sign(x), [batch, points, x.shape[3]])
        features.append(x)
    nodes = tf.concat(features, axis=2)
    x = tf.expand_dims(nodes, 2)
    x = prelu(rescaled(binary_dot(x, weights, "conv5.0"), weights, "conv5.1"), weights, "conv5.2")
    x = batch_norm(x, weights, "bn5")
    pooled = [keras.layers.MaxPool2D((points, 1))(x), keras.layers.AveragePooling2D((points, 1))(x)]
    x = tf.concat(pooled, axis=3)
    x = classifier_block(x, weights, "linear1")
    x = classifier_block(x, weights, "linear2")
    x = tf.reshape(sign(batch_norm(x, weights, "linear3.center")), [batch, x.shape[3]])
    x = tf.matmul(x, weights["linear3.core_op.weights_real"].T)
    logits = rescaled(x, weights, "linear3.rescale")
    return keras.Model(cloud, [logits, nodes])


def convert(model: keras.Model) -> bytes:
    """The file that Larq Compute Engine's own converter makes."""
    return lce.convert_keras_model(model)


if __name__ == "__main__":
    source, target, arch, knn, *sizes = sys.argv[1:]
    with np.load(source) as archive:
        Path(target).write_bytes(convert(twin(dict(archive), arch, knn, *map(int, sizes))))
