"""Configs with one mistake each, and the whole message that each one gets.

The rows are data: the tests load them as `broken.yaml` beside `base.yaml`, and
the documentation shows them.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "model: {stages: [{filters: 8, blocks: 1}]}\n"


@dataclass(frozen=True)
class BrokenConfig:
    """A mistake and what the user reads.

    Args:
        name: What is wrong, in words.
        text: The file `broken.yaml`.
        message: Everything that the error says.
        overrides: What stands behind `--set`, one each.
        base: The file `base.yaml`, if there is one.
    """

    name: str
    text: str
    message: str
    overrides: tuple[str, ...] = ()
    base: str | None = None


BROKEN_CONFIGS: tuple[BrokenConfig, ...] = (
    BrokenConfig(
        name="the file is empty",
        text="# nothing but a comment\n",
        message="broken.yaml:1: the file is empty. Write at least `extends` or `model`",
    ),
    BrokenConfig(
        name="the top level is a list",
        text="- model\n",
        message="broken.yaml:1: the top level must be a mapping of `key: value` lines",
    ),
    BrokenConfig(
        name="a tab indents",
        text=("model:\n\tstages: []\n"),
        message="broken.yaml:2: not valid YAML: a tab cannot indent. Use spaces",
    ),
    BrokenConfig(
        name="a bracket is not closed",
        text=MODEL + ("fit: {epochs: 3\nseed: 1\n"),
        message=(
            "broken.yaml:3: not valid YAML: while parsing a flow mapping that begins in line 2, "
            "expected ',' or '}', but got ':'"
        ),
    ),
    BrokenConfig(
        name="a value holds a colon",
        text=MODEL + "name: a: b\n",
        message="broken.yaml:2: not valid YAML: mapping values are not allowed here",
    ),
    BrokenConfig(
        name="there are two documents",
        text=MODEL + ("---\nseed: 1\n"),
        message=(
            "broken.yaml:2: not valid YAML: expected a single document in the stream, but found "
            "another document"
        ),
    ),
    BrokenConfig(
        name="a control character",
        text=MODEL + "name: a\x07b\n",
        message="broken.yaml:2: not valid YAML: the character '\\x07' is not allowed",
    ),
    BrokenConfig(
        name="a key is written twice",
        text=MODEL + ("fit:\n  epochs: 3\n  epochs: 5\n"),
        message=(
            "broken.yaml:4: fit.epochs: duplicate key, first written in line 3. Remove one of them"
        ),
    ),
    BrokenConfig(
        name="a key is a number",
        text=MODEL + "fit: {1: 3}\n",
        message="broken.yaml:2: fit: a key must be a word. Received: 1",
    ),
    BrokenConfig(
        name="a tag",
        text=MODEL + "seed: !!int '3'\n",
        message=(
            "broken.yaml:2: tags are not read. Remove !!int\n"
            "broken.yaml:2: seed: must be an integer. Received: '3'"
        ),
    ),
    BrokenConfig(
        name="a merge key",
        text=MODEL + ("fit: &a {epochs: 3}\n<<: {seed: 1}\n"),
        message="broken.yaml:3: merge keys (<<) are not read. Repeat the keys",
    ),
    BrokenConfig(
        name="an alias inside of its anchor",
        text="model: &a {stages: [*a]}\n",
        message=(
            "broken.yaml: values are nested too deeply, or an alias stands inside of its own anchor"
        ),
    ),
    BrokenConfig(
        name="the model is missing",
        text="seed: 3\n",
        message="broken.yaml:1: model: missing key",
    ),
    BrokenConfig(
        name="a key is missing in a list item",
        text=("model:\n  stages:\n    - {filters: 8, blocks: 1}\n    - {filters: 16}\n"),
        message="broken.yaml:4: model.stages[1].blocks: missing key",
    ),
    BrokenConfig(
        name="an unknown key",
        text=MODEL + ("optimizer:\n  kind: adam\n  learning_rat: 0.1\n"),
        message=(
            "broken.yaml:4: optimizer.learning_rat: unknown key. Did you mean 'learning_rate'? "
            "Known keys: kind, learning_rate, clipnorm, global_clipnorm, clipvalue, "
            "weight_decay, ema_momentum, beta_1, beta_2, epsilon"
        ),
    ),
    BrokenConfig(
        name="an abbreviated key",
        text=MODEL + ("optimizer:\n  kind: sgd\n  lr: 0.1\n"),
        message=(
            "broken.yaml:4: optimizer.lr: unknown key. Did you mean 'learning_rate'? Known keys: "
            "kind, learning_rate, clipnorm, global_clipnorm, clipvalue, weight_decay, "
            "ema_momentum, momentum, nesterov"
        ),
    ),
    BrokenConfig(
        name="a key stands in the wrong section",
        text=MODEL + "epochs: 3\n",
        message=(
            "broken.yaml:2: epochs: unknown key. Did you mean 'fit.epochs'? Known keys: name, "
            "seed, data, model, optimizer, schedule, fit, evaluation, gradients, runtime, search"
        ),
    ),
    BrokenConfig(
        name="an option of another kind",
        text=MODEL + ("schedule:\n  kind: constant\n  final_fraction: 0.1\n"),
        message=(
            "broken.yaml:4: schedule.final_fraction: unknown key. Known keys: kind, "
            "warmup_epochs, warmup_steps"
        ),
    ),
    BrokenConfig(
        name="the kind is missing",
        text=MODEL + "optimizer: {learning_rate: 0.1}\n",
        message=(
            "broken.yaml:2: optimizer: missing key 'kind', one of sgd, adam, adamw, rmsprop, "
            "lion, muon"
        ),
    ),
    BrokenConfig(
        name="a kind that does not exist",
        text=MODEL + "optimizer: {kind: addam}\n",
        message=(
            "broken.yaml:2: optimizer.kind: must be one of sgd, adam, adamw, rmsprop, lion, "
            "muon. Received: 'addam'. Did you mean 'adam'?"
        ),
    ),
    BrokenConfig(
        name="a section that is only a name",
        text=MODEL + "schedule: cosine\n",
        message=(
            "broken.yaml:2: schedule: must be a mapping with the key 'kind'. Received: 'cosine'"
        ),
    ),
    BrokenConfig(
        name="a required option of a kind",
        text=MODEL + "schedule: {kind: step}\n",
        message="broken.yaml:2: schedule.boundary_epochs: missing key",
    ),
    BrokenConfig(
        name="a word out of a fixed list",
        text=("model:\n  stages: [{filters: 8, blocks: 1}]\n  block:\n    kind: residul\n"),
        message=(
            "broken.yaml:4: model.block.kind: must be one of plain, residual. Received: "
            "'residul'. Did you mean 'residual'?"
        ),
    ),
    BrokenConfig(
        name="yes is not a boolean",
        text=MODEL + "gradients: {record: yes}\n",
        message="broken.yaml:2: gradients.record: must be true or false. Received: 'yes'",
    ),
    BrokenConfig(
        name="true is not jit: on",
        text=MODEL + "runtime: {jit: true}\n",
        message="broken.yaml:2: runtime.jit: must be one of auto, on, off. Received: true",
    ),
    BrokenConfig(
        name="yes is not an integer",
        text=MODEL + "seed: yes\n",
        message="broken.yaml:2: seed: must be an integer. Received: 'yes'",
    ),
    BrokenConfig(
        name="a float is not an integer",
        text=MODEL + "fit: {epochs: 1e2}\n",
        message="broken.yaml:2: fit.epochs: must be an integer. Received: 100.0",
    ),
    BrokenConfig(
        name="a quoted number is text",
        text=MODEL + "optimizer: {kind: sgd, learning_rate: '0.1'}\n",
        message="broken.yaml:2: optimizer.learning_rate: must be a number. Received: '0.1'",
    ),
    BrokenConfig(
        name="text where a number is due",
        text=MODEL + "data: {validation_split: 10%}\n",
        message="broken.yaml:2: data.validation_split: must be a number. Received: '10%'",
    ),
    BrokenConfig(
        name="a number where text is due",
        text=MODEL + "data: {path: 3}\n",
        message="broken.yaml:2: data.path: must be text. Received: 3",
    ),
    BrokenConfig(
        name="a number out of range",
        text=MODEL + ("optimizer:\n  kind: adam\n  beta_1: 1\n"),
        message="broken.yaml:4: optimizer.beta_1: must be less than 1. Received: 1",
    ),
    BrokenConfig(
        name="a negative seed",
        text=MODEL + "seed: -1\n",
        message="broken.yaml:2: seed: must be greater than or equal to 0. Received: -1",
    ),
    BrokenConfig(
        name="an infinite number",
        text=MODEL + "optimizer: {kind: sgd, learning_rate: .inf}\n",
        message="broken.yaml:2: optimizer.learning_rate: must be finite. Received: inf",
    ),
    BrokenConfig(
        name="an integer with 400 digits",
        text=MODEL + "optimizer: {kind: sgd, learning_rate: 1" + "0" * 400 + "}\n",
        message="broken.yaml:2: optimizer.learning_rate: must be finite. Received: inf",
    ),
    BrokenConfig(
        name="a name with a slash",
        text="name: runs/first\n" + MODEL,
        message=(
            "broken.yaml:1: name: must match ^[A-Za-z0-9][A-Za-z0-9_.-]*$. Received: 'runs/first'"
        ),
    ),
    BrokenConfig(
        name="a name that is too long",
        text="name: " + "a" * 65 + "\n" + MODEL,
        message=(
            "broken.yaml:1: name: must have at most 64 characters. Received: '" + "a" * 65 + "'"
        ),
    ),
    BrokenConfig(
        name="a number or a word",
        text=MODEL + "runtime: {devices: gpus}\n",
        message=(
            "broken.yaml:2: runtime.devices: must be one of auto, cpu, gpu, or an integer. "
            "Received: 'gpus'. Did you mean 'gpu'?"
        ),
    ),
    BrokenConfig(
        name="no devices",
        text=MODEL + "runtime: {devices: 0}\n",
        message=(
            "broken.yaml:2: runtime.devices: must be one of auto, cpu, gpu, or greater than 0. "
            "Received: 0"
        ),
    ),
    BrokenConfig(
        name="a section that is a word",
        text=MODEL + "fit: fast\n",
        message="broken.yaml:2: fit: must be a mapping. Received: 'fast'",
    ),
    BrokenConfig(
        name="a section with nothing below",
        text=MODEL + "fit:\n",
        message="broken.yaml:2: fit: must be a mapping. Received: null",
    ),
    BrokenConfig(
        name="a list that is a mapping",
        text=("model:\n  stages: {filters: 8, blocks: 1}\n"),
        message="broken.yaml:2: model.stages: must be a list. Received: {filters: 8, blocks: 1}",
    ),
    BrokenConfig(
        name="an empty list",
        text=("model:\n  stages: []\n"),
        message="broken.yaml:2: model.stages: must have at least one item. Received: []",
    ),
    BrokenConfig(
        name="a list that is too short",
        text=MODEL + "data: {image_size: [32]}\n",
        message="broken.yaml:2: data.image_size[1]: missing item",
    ),
    BrokenConfig(
        name="a list that is too long",
        text=MODEL + "data: {image_size: [32, 32, 3]}\n",
        message="broken.yaml:2: data.image_size: must have at most 2 items. Received: [32, 32, 3]",
    ),
    BrokenConfig(
        name="an unknown name in a list",
        text=MODEL + ("data:\n  augment:\n    - horizontal_flip\n    - random_shft\n"),
        message=(
            "broken.yaml:5: data.augment[1]: must be one of horizontal_flip, random_shift, "
            "cutout, mixup. Received: 'random_shft'. Did you mean 'random_shift'?"
        ),
    ),
    BrokenConfig(
        name="an unknown name with options",
        text=MODEL + ("data:\n  augment:\n    - random_shft: {pixels: 4}\n"),
        message=(
            "broken.yaml:4: data.augment[0]: must be one of horizontal_flip, random_shift, "
            "cutout, mixup. Received: 'random_shft'. Did you mean 'random_shift'?"
        ),
    ),
    BrokenConfig(
        name="a wrong option below a name",
        text=MODEL
        + ("data:\n  augment:\n    - horizontal_flip\n    - random_shift:\n        pixels: -4\n"),
        message=(
            "broken.yaml:6: data.augment[1].random_shift.pixels: must be greater than 0. "
            "Received: -4"
        ),
    ),
    BrokenConfig(
        name="a wrong option beside a kind",
        text=MODEL + ("data:\n  augment:\n    - kind: random_shift\n      pixels: -4\n"),
        message="broken.yaml:5: data.augment[0].pixels: must be greater than 0. Received: -4",
    ),
    BrokenConfig(
        name="an option that is not indented below its name",
        text=MODEL + ("data:\n  augment:\n    - random_shift:\n      pixels: 4\n"),
        message=(
            "broken.yaml:4: data.augment[0]: missing key 'kind', one of horizontal_flip, "
            "random_shift, cutout, mixup. The options of random_shift are written {random_shift: "
            "{option: value}}"
        ),
    ),
    BrokenConfig(
        name="two names in one list item",
        text=MODEL + ("data:\n  augment:\n    - {mixup: {}, cutout: {}}\n"),
        message=(
            "broken.yaml:4: data.augment[0]: must be one of horizontal_flip, random_shift, "
            "cutout, mixup. Received: mixup and cutout in one mapping"
        ),
    ),
    BrokenConfig(
        name="an unknown initializer",
        text=(
            "model:\n  stages: [{filters: 8, blocks: 1}]\n  block: {kernel_initializer: he_norml}\n"
        ),
        message=(
            "broken.yaml:3: model.block.kernel_initializer: must be one of constant, "
            "dirac, glorot_normal, glorot_uniform, he_normal, he_uniform, identity, "
            "lecun_normal, lecun_uniform, ones, orthogonal, random_normal, random_uniform, "
            "truncated_normal, variance_scaling, zeros. Received: 'he_norml'. "
            "Did you mean 'he_normal'?"
        ),
    ),
    BrokenConfig(
        name="an unknown argument of an initializer",
        text=(
            "model:\n"
            "  stages: [{filters: 8, blocks: 1}]\n"
            "  block:\n"
            "    kernel_initializer: {random_normal: {sigma: 0.1}}\n"
        ),
        message=(
            "broken.yaml:4: model.block.kernel_initializer: random_normal takes mean, stddev, "
            "not sigma"
        ),
    ),
    BrokenConfig(
        name="a wrong argument of an initializer",
        text=(
            "model:\n"
            "  stages: [{filters: 8, blocks: 1}]\n"
            "  block:\n"
            "    kernel_initializer: {random_normal: {stddev: [1]}}\n"
        ),
        message=(
            "broken.yaml:4: model.block.kernel_initializer.random_normal.stddev: must be a "
            "number, or text. Received: [1]"
        ),
    ),
    BrokenConfig(
        name="two kinds of clipping",
        text=MODEL + "optimizer: {kind: adam, clipnorm: 1, clipvalue: 1}\n",
        message=(
            "broken.yaml:2: optimizer: only one kind of clipping can be set. Received: clipnorm, "
            "clipvalue"
        ),
    ),
    BrokenConfig(
        name="a plain block with stochastic depth",
        text=(
            "model:\n"
            "  stages: [{filters: 8, blocks: 1}]\n"
            "  block: {kind: plain, stochastic_depth: 0.2}\n"
        ),
        message=(
            "broken.yaml:3: model.block: stochastic_depth drops the branch beside a shortcut, "
            "and a plain block has no shortcut. Received: stochastic_depth=0.2. Set it to 0 or "
            "set kind: residual"
        ),
    ),
    BrokenConfig(
        name="a scale that starts at zero and does not exist",
        text=(
            "model:\n"
            "  stages: [{filters: 8, blocks: 1}]\n"
            "  block: {zero_init_last: true, normalization: {batch: {scale: false}}}\n"
        ),
        message=(
            "broken.yaml:3: model.block: zero_init_last starts a scale at zero, and "
            "normalization.batch.scale is false. Set one of the two to its default"
        ),
    ),
    BrokenConfig(
        name="a directory without an image size",
        text=MODEL + "data: {source: directory, path: flowers}\n",
        message=(
            "broken.yaml:2: data: source: directory needs image_size: [height, width], because "
            "every image of a batch must have one size"
        ),
    ),
    BrokenConfig(
        name="groups that do not divide the filters",
        text=("model:\n  stages: [{filters: 12, blocks: 1}]\n  block: {normalization: group}\n"),
        message=(
            "broken.yaml:1: model: the groups of a group normalization must divide the channels "
            "they are taken from. Received: groups=8, 12 channels in stage 0"
        ),
    ),
    BrokenConfig(
        name="more down-sampling than pixels",
        text=(
            "model:\n"
            "  stem: {strides: 2, pool_size: 2}\n"
            "  stages:\n"
            "    - {filters: 8, blocks: 1, strides: 4}\n"
            "    - {filters: 8, blocks: 1, strides: 4}\n"
        ),
        message=(
            "broken.yaml:3: model.stages: stem and stages together must not down-sample by more "
            "than the image has pixels. Received: strides of 64 in all, an image of 32x32 pixels"
        ),
    ),
    BrokenConfig(
        name="more down-sampling than pixels of a directory",
        text=(
            "data: {source: directory, path: flowers, image_size: [64, 16]}\n"
            "model:\n"
            "  stem: {strides: 32}\n"
            "  stages: [{filters: 8, blocks: 1}]\n"
        ),
        message=(
            "broken.yaml:4: model.stages: stem and stages together must not down-sample by more "
            "than the image has pixels. Received: strides of 32 in all, an image of 64x16 pixels"
        ),
    ),
    BrokenConfig(
        name="pooling that leaves no pixel",
        text=(
            "model:\n"
            "  stem: {kind: whitening}\n"
            "  stages:\n"
            "    - {filters: 8, blocks: 1, pool_size: 32}\n"
        ),
        message=(
            "broken.yaml:3: model.stages: stem and stages together must not down-sample by more "
            "than the image has pixels. Received: strides of 32 in all, an image of 32x32 pixels"
        ),
    ),
    BrokenConfig(
        name="filters of a whitening stem",
        text=(
            "model:\n  stem: {kind: whitening, filters: 16}\n  stages: [{filters: 32, blocks: 1}]\n"
        ),
        message=(
            "broken.yaml:2: model.stem.filters: unknown key. "
            "Known keys: kind, kernel_size, epsilon, bias"
        ),
    ),
    BrokenConfig(
        name="dirac for a matrix",
        text=(
            "model:\n  stages: [{filters: 32, blocks: 1}]\n  head: {kernel_initializer: dirac}\n"
        ),
        message=(
            "broken.yaml:3: model.head.kernel_initializer: dirac is for convolutions, and the "
            "head's kernel is a matrix. Received: 'dirac'"
        ),
    ),
    BrokenConfig(
        name="a shift across the whole image",
        text=MODEL + ("data:\n  augment: [{random_shift: {pixels: 32}}]\n"),
        message=(
            "broken.yaml:3: data.augment[0].random_shift.pixels: must be less than the side of "
            "the image. Received: pixels=32, an image of 32x32 pixels"
        ),
    ),
    BrokenConfig(
        name="a square larger than the image",
        text=MODEL + ("data:\n  augment: [{kind: cutout, size: 33}]\n"),
        message=(
            "broken.yaml:3: data.augment[0].size: must not be more than the side of the image. "
            "Received: size=33, an image of 32x32 pixels"
        ),
    ),
    BrokenConfig(
        name="fewer drawn images than classes",
        text=MODEL
        + (
            "data: {source: shapes, train_size: 9, test_size: 9, validation_split: 0}\n"
            "fit: {batch_size: 1}\n"
        ),
        message=(
            "broken.yaml:2: data.train_size: must be at least 10, one image of each class. "
            "Received: 9\n"
            "broken.yaml:2: data.test_size: must be at least 10, one image of each class. "
            "Received: 9"
        ),
    ),
    BrokenConfig(
        name="a validation split that leaves nothing to validate on",
        text=MODEL + ("data: {source: shapes, train_size: 40}\nfit: {batch_size: 4}\n"),
        message=(
            "broken.yaml:2: data.validation_split: must leave images of each class for "
            "validation; 0 turns validation off. Received: 0.1 of 4 images a class, which is 0"
        ),
    ),
    BrokenConfig(
        name="a validation split that leaves nothing to train on",
        text=MODEL + ("data: {validation_split: 0.9999}\nfit: {batch_size: 1}\n"),
        message=(
            "broken.yaml:2: data.validation_split: must leave images of each class for training; "
            "0 turns validation off. Received: 0.9999 of 5000 images a class, which is 5000"
        ),
    ),
    BrokenConfig(
        name="a batch larger than the data",
        text=MODEL
        + (
            "data: {source: shapes, train_size: 100, validation_split: 0.2}\n"
            "fit: {batch_size: 128}\n"
        ),
        message=(
            "broken.yaml:3: fit.batch_size: must not be more than the training images that "
            "validation leaves. Received: 128 of 80 images"
        ),
    ),
    BrokenConfig(
        name="a batch that does not divide over the devices",
        text=MODEL + "runtime: {logical_cpus: 3}\n",
        message=(
            "broken.yaml:1: fit.batch_size: must be a multiple of the number of devices. "
            "Received: 128 over 3 devices"
        ),
    ),
    BrokenConfig(
        name="a warm-up longer than the run",
        text=MODEL + ("schedule: {kind: cosine, warmup_epochs: 5}\nfit: {epochs: 3}\n"),
        message=(
            "broken.yaml:2: schedule.warmup_epochs: must not be longer than the run. Received: "
            "warmup_epochs=5, fit.epochs=3"
        ),
    ),
    BrokenConfig(
        name="a warm-up of more steps than the run",
        text=MODEL + ("schedule: {kind: cosine, warmup_steps: 352}\nfit: {epochs: 1}\n"),
        message=(
            "broken.yaml:2: schedule.warmup_steps: must not be longer than the run. Received: "
            "warmup_steps=352, a run of 351 steps"
        ),
    ),
    BrokenConfig(
        name="a boundary behind the last epoch",
        text=MODEL
        + ("schedule:\n  kind: step\n  boundary_epochs: [10, 20, 30]\nfit: {epochs: 20}\n"),
        message=(
            "broken.yaml:4: schedule.boundary_epochs[1]: must lie before the end of the run, or "
            "it never takes effect. Received: 20, fit.epochs=20\n"
            "broken.yaml:4: schedule.boundary_epochs[2]: must lie before the end of the run, or "
            "it never takes effect. Received: 30, fit.epochs=20"
        ),
    ),
    BrokenConfig(
        name="early crops as large as the image",
        text=MODEL + "data:\n  early_crops: {size: 32, epochs: 3}\n",
        message=(
            "broken.yaml:3: data.early_crops.size: must be less than the side of the image. "
            "Received: size=32, an image of 32x32 pixels"
        ),
    ),
    BrokenConfig(
        name="early crops that the strides use up",
        text=(
            "model:\n"
            "  stages:\n"
            "    - {filters: 8, blocks: 1, strides: 4}\n"
            "    - {filters: 8, blocks: 1, strides: 8}\n"
            "data:\n"
            "  early_crops: {size: 24, epochs: 3}\n"
        ),
        message=(
            "broken.yaml:6: data.early_crops.size: stem and stages together must not "
            "down-sample by more than a crop has pixels. Received: size=24, strides of 32 in all"
        ),
    ),
    BrokenConfig(
        name="early crops that pooling uses up",
        text=(
            "model:\n"
            "  stem: {kind: whitening}\n"
            "  stages: [{filters: 8, blocks: 1, pool_size: 8}]\n"
            "data:\n"
            "  early_crops: {size: 8, epochs: 3}\n"
        ),
        message=(
            "broken.yaml:5: data.early_crops.size: stem and stages together must not "
            "down-sample by more than a crop has pixels. Received: size=8, strides of 8 in all"
        ),
    ),
    BrokenConfig(
        name="early crops to the end of the run",
        text=MODEL + "data:\n  early_crops:\n    size: 24\n    epochs: 20\nfit: {epochs: 20}\n",
        message=(
            "broken.yaml:5: data.early_crops.epochs: must be less than fit.epochs, because at "
            "least the last epoch sees whole images. Received: epochs=20, fit.epochs=20"
        ),
    ),
    BrokenConfig(
        name="early crops before a flattening head",
        text=(
            "model:\n"
            "  stages: [{filters: 8, blocks: 1}]\n"
            "  head: {pooling: flatten}\n"
            "data: {early_crops: {size: 24, epochs: 3}}\n"
        ),
        message=(
            "broken.yaml:3: model.head.pooling: must be average or max with data.early_crops, "
            "because flatten makes fewer features of a crop than of a whole image. Received: "
            "flatten"
        ),
    ),
    BrokenConfig(
        name="early crops without their epochs",
        text=MODEL + "data: {early_crops: {size: 24}}\n",
        message="broken.yaml:2: data.early_crops.epochs: missing key",
    ),
    BrokenConfig(
        name="XLA on several CPU devices",
        text=MODEL + "runtime: {logical_cpus: 2, jit: on}\n",
        message=(
            "broken.yaml:2: runtime.jit: must be off or auto on several CPU devices, where XLA "
            "fails. Received: on, logical_cpus=2"
        ),
    ),
    BrokenConfig(
        name="XLA with float16 on several GPUs",
        text=MODEL + "runtime: {devices: 2, jit: on, precision: mixed_float16}\n",
        message=(
            "broken.yaml:2: runtime.jit: must be off or auto with mixed_float16 on several "
            "devices, where Keras crashes in merge_call (Keras issue 21366). mixed_bfloat16 is "
            "free of this. Received: on, devices=2"
        ),
    ),
    BrokenConfig(
        name="a window shorter than an execution",
        text=MODEL + "runtime: {steps_per_execution: 100}\n",
        message=(
            "broken.yaml:1: gradients.window_steps: must be at least "
            "runtime.steps_per_execution, because the host reads the window between two "
            "executions. Received: window_steps=50, steps_per_execution=100"
        ),
    ),
    BrokenConfig(
        name="hyperband over the epochs that it chooses itself",
        text=MODEL
        + ("search:\n  algorithm: hyperband\n  space:\n    fit.epochs: {choice: [5, 10]}\n"),
        message=(
            "broken.yaml:5: search.space.fit.epochs: hyperband decides itself for how many epochs "
            "a trial trains, up to fit.epochs. Leave fit.epochs out of the space, or choose "
            "another algorithm"
        ),
    ),
    BrokenConfig(
        name="everything at once",
        text=(
            "seed: -1\n"
            "epochs: 3\n"
            "model:\n"
            "  stages:\n"
            "    - {filters: 8}\n"
            "fit:\n"
            "  epochs: 3\n"
            "  epochs: ten\n"
        ),
        message=(
            "broken.yaml:1: seed: must be greater than or equal to 0. Received: -1\n"
            "broken.yaml:2: epochs: unknown key. Did you mean 'fit.epochs'? Known keys: name, "
            "seed, data, model, optimizer, schedule, fit, evaluation, gradients, runtime, search\n"
            "broken.yaml:5: model.stages[0].blocks: missing key\n"
            "broken.yaml:8: fit.epochs: duplicate key, first written in line 7. Remove one of "
            "them\n"
            "broken.yaml:8: fit.epochs: must be an integer. Received: 'ten'"
        ),
    ),
    BrokenConfig(
        name="an error in the base",
        text=("extends: base.yaml\nseed: -1\n"),
        message=(
            "base.yaml:3: model.stages[0].filters: must be greater than 0. Received: 0\n"
            "broken.yaml:2: seed: must be greater than or equal to 0. Received: -1"
        ),
        base=("model:\n  stages:\n    - {filters: 0, blocks: 1}\n"),
    ),
    BrokenConfig(
        name="a clash of the file with its base",
        text=("extends: base.yaml\noptimizer:\n  clipvalue: 1\n"),
        message=(
            "broken.yaml:2: optimizer: only one kind of clipping can be set. Received: clipnorm, "
            "clipvalue"
        ),
        base=MODEL + ("optimizer:\n  kind: adam\n  clipnorm: 1\n"),
    ),
    BrokenConfig(
        name="a residual stage with strides and pooling",
        text=(
            "model:\n  stages:\n    - {filters: 8, blocks: 1}\n"
            "    - {filters: 8, blocks: 1, strides: 2, pool_size: 2}\n"
        ),
        message=(
            "broken.yaml:4: model.stages[1].pool_size: must be 1 in a residual stage with strides: "
            "pooling and strides round sizes differently, one after the other and the other way "
            "round. Received: 2, strides=2"
        ),
    ),
    BrokenConfig(
        name="a base that extends the file",
        text=("seed: 1\nextends: base.yaml\n"),
        message=(
            "broken.yaml:2: extends: base.yaml:2: extends: broken.yaml is this file, or extends "
            "it. Name a file that does not come back here"
        ),
        base=("# a comment\nextends: broken.yaml\n"),
    ),
    BrokenConfig(
        name="a file that extends itself",
        text=("extends: ./broken.yaml\n"),
        message=(
            "broken.yaml:1: extends: ./broken.yaml is this file, or extends it. Name a file that "
            "does not come back here"
        ),
    ),
    BrokenConfig(
        name="a base whose own base does not exist",
        text=("seed: 1\nextends: base.yaml\n"),
        message="broken.yaml:2: extends: base.yaml:1: extends: other.yaml: no such file",
        base="extends: other.yaml\n",
    ),
    BrokenConfig(
        name="a base that does not exist",
        text="extends: bse.yaml\n",
        message="broken.yaml:1: extends: bse.yaml: no such file. Did you mean base.yaml?",
        base=MODEL,
    ),
    BrokenConfig(
        name="a base that is not YAML",
        text="extends: base.yaml\n",
        message=(
            "broken.yaml:1: extends: base.yaml:1: not valid YAML: while parsing a flow node, "
            "expected the node content, but found '<stream end>'"
        ),
        base="model: [\n",
    ),
    BrokenConfig(
        name="a base that is a number",
        text="extends: 3\n",
        message="broken.yaml:1: extends: must be the path of a YAML file, relative to this one",
    ),
    BrokenConfig(
        name="an override with an unknown key",
        text=MODEL,
        message=(
            "--set optimizer.lr=3: optimizer.lr: unknown key. Did you mean 'learning_rate'? "
            "Known keys: kind, learning_rate, clipnorm, global_clipnorm, clipvalue, "
            "weight_decay, ema_momentum, beta_1, beta_2, epsilon"
        ),
        overrides=(
            "optimizer={kind: adam}",
            "optimizer.lr=3",
        ),
    ),
    BrokenConfig(
        name="an override with a wrong value",
        text=MODEL,
        message="--set fit.epochs=ten: fit.epochs: must be an integer. Received: 'ten'",
        overrides=("fit.epochs=ten",),
    ),
    BrokenConfig(
        name="an override without a value",
        text=MODEL,
        message="--set fit.epochs: must be written key.path=value, as in --set fit.epochs=20",
        overrides=("fit.epochs",),
    ),
    BrokenConfig(
        name="an override with an empty value",
        text=MODEL,
        message="--set fit.epochs=: fit.epochs: must be an integer. Received: null",
        overrides=("fit.epochs=",),
    ),
    BrokenConfig(
        name="an override that is not YAML",
        text=MODEL,
        message=(
            "--set fit={epochs: 3: not valid YAML: while parsing a flow mapping, expected ',' or "
            "'}', but got '<stream end>'"
        ),
        overrides=("fit={epochs: 3",),
    ),
    BrokenConfig(
        name="an override of an item that does not exist",
        text=MODEL,
        message=(
            "--set model.stages[3].filters=8: model.stages: is a list of 1, whose items are "
            "numbered from 0. Received: 3"
        ),
        overrides=("model.stages[3].filters=8",),
    ),
    BrokenConfig(
        name="an override of an item of no list",
        text=MODEL,
        message="--set fit.0=8: fit: is not a list in the file, so it has no item 0",
        overrides=("fit.0=8",),
    ),
    BrokenConfig(
        name="an override of an item by name",
        text=MODEL,
        message=(
            "--set model.stages.first.filters=8: model.stages: must be a list. Received: {first: "
            "{filters: 8}}"
        ),
        overrides=("model.stages.first.filters=8",),
    ),
    BrokenConfig(
        name="an override of extends",
        text=MODEL,
        message="--set extends=base.yaml: only a file can extend another file",
        overrides=("extends=base.yaml",),
    ),
    BrokenConfig(
        name="an override that makes the file invalid",
        text=MODEL + "schedule: {kind: cosine, warmup_epochs: 2}\n",
        message=(
            "broken.yaml:2: schedule.warmup_epochs: must not be longer than the run. Received: "
            "warmup_epochs=2, fit.epochs=1"
        ),
        overrides=("fit.epochs=1",),
    ),
    BrokenConfig(
        name="an override of the kind drops the options of the old one",
        text=MODEL + "optimizer: {kind: sgd, momentum: 2}\n",
        message=(
            "--set optimizer.momentum=0.9: optimizer.momentum: unknown key. Did you mean "
            "'ema_momentum'? Known keys: kind, learning_rate, clipnorm, global_clipnorm, "
            "clipvalue, weight_decay, ema_momentum, beta_1, beta_2, epsilon"
        ),
        overrides=(
            "optimizer.kind=adam",
            "optimizer.momentum=0.9",
        ),
    ),
)
