"""The networks that are timed, by name: those of the recipes, but mnist's as it was when it was first timed."""

from dataclasses import replace

from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from pipelines.recipes.config import Recipe
from pipelines.recipes.recipes import make


def timed(net: str) -> Recipe:
    """Its recipe. Of the network that the recipe mnist has by now, speeds could not be held against those recorded before."""
    recipe = make(net)
    if net != "mnist":
        return recipe
    unet = replace(recipe.unet, base_channels=16, channel_multipliers=(1, 2, 4))
    return replace(recipe, unet=unet, schedule=ScheduleConfig(), reverse=ReverseConfig())
