"""From the `config.json` of a run to its network and the way it makes masks. Light: neither data nor checkpoints."""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from brainseg_jax.inference.network import Network
from brainseg_jax.inference.postprocess import PostProcess
from brainseg_jax.models import build_model
from brainseg_jax.scans.description import LGG, Description


def description_of(dataset: dict) -> Description:
    """Channels and targets of the data of a run, from `dataset` in its `config.json`; without any those of LGG."""
    return Description.from_json(dataset["description"]) if "description" in dataset else LGG


def posts_of(config: ConfigDict, description: Description) -> tuple[PostProcess, ...]:
    """What makes masks of probabilities as a config says it, the same for each target."""
    post = PostProcess(config.eval.threshold, config.eval.largest_component, config.eval.min_voxels)
    return (post,) * len(description.targets)


def build_network(config: ConfigDict, description: Description, variables: dict) -> Network:
    """The network of a config.

    Args:
      config: of a run.
      description: channels and targets of its data.
      variables: of the network.
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
    """Shapes of the variables of a config's network, `jax.ShapeDtypeStruct`s; nothing is compiled."""
    model, size = build_network(config, description, {}).model, config.data.image_size
    model = model.clone(formulation="lax")  # the same variables, traced in less time
    images = jax.ShapeDtypeStruct(
        (1, size, size, (2 * config.data.context + 1) * len(description.channels)), jnp.float32
    )
    variables = jax.eval_shape(partial(model.init, train=False), jax.eval_shape(lambda: jax.random.key(0)), images)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
