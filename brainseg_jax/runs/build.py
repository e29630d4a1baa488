"""Builds the network and the post-processing from the `config.json` of a run. Loads neither data nor checkpoints."""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.models import build_model
from brainseg_jax.scans.description import LGG, Description


def description_of(dataset: dict) -> Description:
    """Channels and targets from `dataset` in the `config.json` of a run. Without a description: those of LGG."""
    return Description.from_json(dataset["description"]) if "description" in dataset else LGG


def posts_of(config: ConfigDict, description: Description) -> tuple[PostProcess, ...]:
    """The post-processing in the config, the same for each target."""
    post = PostProcess(config.eval.threshold, config.eval.largest_component, config.eval.min_voxels)
    return (post,) * len(description.targets)


def build_network(config: ConfigDict, description: Description, variables: dict) -> Network:
    """Builds the network of a config.

    Args:
      config: config of the run.
      description: channels and targets of its data.
      variables: variables of the network.
    """
    return Network(
        model=build_model(**config.model, targets=len(description.targets)),
        variables=variables,
        description=description,
        image_size=config.data.image_size,
        pixel_spacing=config.data.pixel_spacing,
        view=config.data.view,
        context=config.data.context,
        normalization=config.data.normalization,
        mirror=config.eval.mirror,
        deterministic=config.deterministic,
    )


def shapes_of_variables(config: ConfigDict, description: Description) -> dict:
    """Shapes of the variables of a config's network, as `jax.ShapeDtypeStruct`s. Compiles nothing."""
    model, size = build_network(config, description, {}).model, config.data.image_size
    model = model.clone(formulation="lax")  # the same variables, faster to trace
    images = jax.ShapeDtypeStruct(
        (1, size, size, (2 * config.data.context + 1) * len(description.channels)), jnp.float32
    )
    variables = jax.eval_shape(partial(model.init, train=False), jax.eval_shape(lambda: jax.random.key(0)), images)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
