"""Small seeded Keras networks of the kinds that people bring; run as a script it writes each into a folder, in the forms they come in."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import tensorflow as tf
from keras import layers


def depthwise_cnn() -> keras.Model:
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, 2, "same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6.0, name="depthwise_relu")(layers.BatchNormalization(name="depthwise_bn")(x))
    x = layers.Conv2D(32, 1, activation="relu", name="pointwise")(x)
    return keras.Model(image, layers.Dense(10, activation="softmax", name="head")(layers.GlobalAveragePooling2D(name="pool")(x)))


def lstm() -> keras.Model:
    return _recurrent(layers.LSTM(16, return_sequences=True, name="lstm"))


def gru() -> keras.Model:
    return _recurrent(layers.GRU(16, return_sequences=True, name="gru"))


def bidirectional_lstm() -> keras.Model:
    return _recurrent(layers.Bidirectional(layers.LSTM(16, return_sequences=True), name="both"))


def _recurrent(layer: layers.Layer) -> keras.Model:
    features = keras.Input((None, 8), name="features")
    return keras.Model(features, layers.Dense(5, name="head")(layer(features)))


def transformer_encoder() -> keras.Model:
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 32, name="embedding")(tokens)
    x = _block(x, x, "block")
    return keras.Model(tokens, layers.Dense(5, name="head")(layers.GlobalAveragePooling1D(name="pool")(x)))


def encoder_decoder() -> keras.Model:
    source = keras.Input((None,), dtype="int32", name="source_ids")
    target = keras.Input((None,), dtype="int32", name="target_ids")
    memory = layers.Embedding(50, 32, name="source")(source)
    memory = _block(memory, memory, "encoder")
    x = layers.Embedding(40, 32, name="target")(target)
    return keras.Model([source, target], layers.Dense(40, name="head")(_block(_block(x, x, "self"), memory, "cross")))


def _block(x: keras.KerasTensor, memory: keras.KerasTensor, name: str) -> keras.KerasTensor:
    attended = layers.MultiHeadAttention(4, 8, name=f"{name}_attention")(x, memory)
    x = layers.LayerNormalization(name=f"{name}_norm1")(layers.Add(name=f"{name}_add1")([x, attended]))
    wide = layers.Dense(64, activation="gelu", name=f"{name}_wide")(x)
    narrow = layers.Dense(32, name=f"{name}_narrow")(wide)
    return layers.LayerNormalization(name=f"{name}_norm2")(layers.Add(name=f"{name}_add2")([x, narrow]))


def recommender() -> keras.Model:
    user, item = keras.Input((), dtype="int32", name="user_ids"), keras.Input((), dtype="int32", name="item_ids")
    dense = keras.Input((13,), name="dense")
    parts = [
        layers.Embedding(100, 16, name="users")(user),
        layers.Embedding(200, 16, name="items")(item),
        layers.Dense(16, name="bottom")(dense),
    ]
    x = layers.Dense(32, activation="relu", name="hidden")(layers.Concatenate(name="together")(parts))
    return keras.Model([user, item, dense], layers.Dense(1, activation="sigmoid", name="score")(x))


def unet() -> keras.Model:
    image = keras.Input((32, 32, 3), name="image")
    skip = layers.Conv2D(8, 3, padding="same", activation="relu", name="down1")(image)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="down2")(layers.MaxPooling2D(name="pool")(skip))
    x = layers.Concatenate(name="joined")([skip, layers.Conv2DTranspose(8, 2, 2, name="up")(x)])
    return keras.Model(image, layers.Conv2D(2, 1, name="out")(layers.Conv2D(8, 3, padding="same", activation="relu", name="refine")(x)))


class Detector(tf.Module):
    """Boxes and scores out of a convolution, and TensorFlow's own suppression of overlapping ones."""

    def __init__(self) -> None:
        super().__init__()
        image = keras.Input((32, 32, 3))
        x = layers.Conv2D(16, 3, 4, "same", activation="relu", name="backbone")(image)
        self.network = keras.Model(
            image, [layers.Conv2D(4, 1, activation="sigmoid", name="boxes")(x), layers.Conv2D(1, 1, name="scores")(x)]
        )

    @tf.function(input_signature=[tf.TensorSpec((1, 32, 32, 3), tf.float32, "image")])
    def detect(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        raw, scores = self.network(image)
        raw, scores = tf.reshape(raw, (64, 4)), tf.reshape(scores, (64,))
        boxes = tf.concat([raw[:, :2] - raw[:, 2:] / 2, raw[:, :2] + raw[:, 2:] / 2], 1)
        kept = tf.image.non_max_suppression(boxes, scores, 10, 0.5)
        return {"boxes": tf.gather(boxes, kept), "scores": tf.gather(scores, kept)}


FORMS = {
    depthwise_cnn: "depthwise_cnn.keras",
    lstm: "lstm",
    gru: "gru.keras",
    bidirectional_lstm: "bidirectional_lstm.h5",
    transformer_encoder: "transformer_encoder.keras",
    encoder_decoder: "encoder_decoder",
    recommender: "recommender.h5",
    unet: "unet.tflite",
}
"""Where no ending is given it is a SavedModel."""


def write(folder: Path) -> None:
    for make, name in FORMS.items():
        keras.utils.set_random_seed(0)
        model = make()
        if name.endswith(".tflite"):
            (folder / name).write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
        elif "." in name:
            model.save(folder / name)
        else:
            model.export(folder / name, verbose=False)
    keras.utils.set_random_seed(0)
    detector = Detector()
    tf.saved_model.save(detector, str(folder / "detector"), signatures=detector.detect)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
