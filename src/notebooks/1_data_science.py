# %% [markdown]
"""
# 1. Data science: from a table of pixels to a measured model

Read MNIST, look at it, train a small network, and measure it on digits that it has never seen.

Run the cells in VS Code, PyCharm or Jupyter, or all of them in a terminal:
`python src/notebooks/1_data_science.py`. The data comes from `dvc repro mnist`, or `dvc pull`.
"""

# %%
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.neighbors import KNeighborsClassifier
from tensorflow import keras

# %% [markdown]
# Work in the project's root, and make each run draw the same random numbers.

# %%
folders = (Path.cwd(), *Path.cwd().parents)
os.chdir(next((folder for folder in folders if Path(folder, "data/mnist").is_dir()), "."))
OUTPUTS = Path("outputs")  # what an Azure ML job keeps; pictures are saved here as well
OUTPUTS.mkdir(exist_ok=True)
keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()

# %% [markdown]
# Each row is a digit: its label, then 784 pixels from 0 (paper) to 255 (ink). Every class should
# have about a tenth of the rows.

# %%
train = pd.read_csv("data/mnist/train.csv", dtype="uint8")
test = pd.read_csv("data/mnist/test.csv", dtype="uint8")
print(train.iloc[:3, [0, 400, 401, 402]])
print(f"{len(train):,} digits to train on, {len(test):,} to test with")
print(train["label"].value_counts(normalize=True).sort_index().round(3).to_string())

# %% [markdown]
# Look at some digits before you train on them.

# %%
images, labels = train.drop(columns="label").to_numpy(), train["label"].to_numpy()
test_images, test_labels = test.drop(columns="label").to_numpy(), test["label"].to_numpy()
figure, axes = plt.subplots(2, 10, figsize=(10, 2.4))
for axis, image, label in zip(axes.flat, images, labels, strict=False):
    axis.imshow(image.reshape(28, 28), cmap="gray_r")
    axis.set_title(label)
    axis.axis("off")
figure.savefig(OUTPUTS / "digits.png")

# %% [markdown]
# First a baseline without a network: the nearest training digits vote. A model has to beat it.

# %%
NEIGHBORS, DIGITS = 3, 10_000
voters = KNeighborsClassifier(NEIGHBORS).fit(images[:DIGITS] / 255, labels[:DIGITS])
baseline = {"accuracy": round(voters.score(test_images / 255, test_labels), 4)}
Path(OUTPUTS, "baseline.json").write_text(json.dumps(baseline) + "\n")
print(f"baseline accuracy {baseline['accuracy']}")

# %% [markdown]
# A small convolutional network, from the Keras documentation.

# %%
model = keras.Sequential(
    [
        keras.layers.Input((28, 28, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
print(f"{model.count_params():,} weights")

# %% [markdown]
# Train; a tenth of the digits is held out to watch the training (about 20 seconds an epoch).

# %%
EPOCHS = 3
pixels = images.reshape(-1, 28, 28, 1)
history = model.fit(pixels, labels, 128, EPOCHS, verbose=2, validation_split=0.1)

# %% [markdown]
# Measure once, on the test digits, with the 95 % interval for this number of digits.

# %%
answers = model.predict(test_images.reshape(-1, 28, 28, 1), verbose=0).argmax(axis=1)
accuracy = float(np.mean(answers == test_labels))
margin = 1.96 * (accuracy * (1 - accuracy) / len(test)) ** 0.5
print(f"test accuracy {accuracy:.4f} ± {margin:.4f}, baseline {baseline['accuracy']}")

# %% [markdown]
# Where does it fail? Rows are the true digits, columns the answers.

# %%
print(pd.crosstab(test_labels, answers, rownames=["true"], colnames=["answer"]).to_string())

# %% [markdown]
# Save the model and its metrics. The notebook does not record which data and code produced them; a
# stage of the pipeline does. Lab 0 of `.github/COURSE.md` turns a cell into a stage.

# %%
model.save(OUTPUTS / "model.keras")
metrics = {"accuracy": round(accuracy, 4), "margin": round(margin, 4), "epochs": EPOCHS}
Path(OUTPUTS, "metrics.json").write_text(json.dumps(metrics) + "\n")
